"""Makes docs/claims.md and its picture from the claims and their records in claims/results, and from nothing else.

python claims/page.py
"""

import re
from collections.abc import Sequence
from pathlib import Path

from backpass.experiments import Record, Study
from backpass.experiments.power import power_of
from backpass.experiments.reporting.differences import Difference, paired_difference
from backpass.experiments.reporting.drawing.canvas import save_figure
from backpass.experiments.reporting.statistics import Summary, summarize
from backpass.experiments.reporting.tables import difference_table, markdown_table
from backpass.experiments.stages import count_runs, last_stage
from backpass.experiments.study import own_records
from claim import Claim
from picture import METHODS, draw
from run import NAMES, RESULTS, load_claim, read_kept

__all__ = ["page", "verdict"]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "claims.md"
PICTURE = PAGE.parent / "pictures" / "claims.svg"

HEAD = """# Claims

Made by `claims/page.py` from the files in [claims](../claims), which were committed before their runs, and from the raw
records in [claims/results](../claims/results). Differences are paired over seeds, in points. *p (Holm)* has Holm's
correction over all differences of a claim; *p-value* and the intervals are of one difference alone. *Detectable* is the
smallest true difference that the seeds detect at p < 0.05 with power 0.9. A claim that is not complete has no verdict.

Where settings are tuned, p-values and intervals hold for the chosen settings and leave out the uncertainty of tuning:
other seeds might have chosen others. Of points that are tied, the first is chosen.

*Seeds* is the text that was committed before the runs; that of the claims on digits calculates with three differences,
also where a claim has more. *Power* is computed here, with the claim's own number of differences: that of the t-test of
one difference at the claim's level divided by their number, the strictest threshold of Holm's correction.

The verdicts: **gain** or **loss**, where p (Holm) is below the claim's level; **no difference of interest**, where the
95 % confidence interval, which is not corrected, lies within the smallest difference of interest; otherwise
**inconclusive**. The rule of *no difference of interest* was fixed in `claims/page.py` after the first claims, those on
digits among them, were committed, and before the first records were kept.

*Train accuracy* is the mean over the augmented training images of the last epoch, each as the model was before its
step. No claim tests it.

![Differences to plain training in the claims that compare the methods, with 95 % intervals](pictures/claims.svg)
"""


def main() -> None:
    PAGE.write_text(page(NAMES))
    save_figure(draw(compared_methods(NAMES)), PICTURE)


def page(names: Sequence[str]) -> str:
    """Return the page of these claims."""
    claims = {name: load_claim(name) for name in names}
    kept = {name: list(read_kept(name).values()) for name in names}
    # A run that two claims share has a record in each.
    computed_once = {(r.run, r.cost): r for records in kept.values() for r in records}.values()
    hours = sum(map(core_hours, computed_once))
    found = {name: summaries(name, claims[name], kept[name]) for name in names}
    rows = [row for name in names for row in overview(name, claims[name], kept[name], found[name][1])]
    parts = [
        HEAD,
        f"All records together: {len(computed_once)} runs, {hours:.1f} core hours (seconds of the runs times their "
        "threads, other programs on the machine included).",
        markdown_table(("claim", "entry", "difference", "95 % CI", "p (Holm)", "verdict"), rows),
        *(section(name, claims[name], kept[name], *found[name]) for name in names),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def compared_methods(names: Sequence[str]) -> dict[str, list[tuple[str, Difference, str]]]:
    """Return method, difference and verdict by claim, of the complete claims whose entries are methods alone."""
    found = {}
    for name in names:
        claim = load_claim(name)
        _, shown = summaries(name, claim, list(read_kept(name).values()))
        tested = [(s.label, s.difference, verdict(s.difference, claim)) for s in shown if s.difference is not None]
        if tested and all(method in METHODS for method, _, _ in tested):
            found[name] = tested
    return found


def core_hours(record: Record) -> float:
    """Return the hours of a run, evaluation included, times its threads."""
    return (record.seconds + record.cost.evaluate_seconds) * record.environment.threads / 3600


def verdict(found: Difference, claim: Claim) -> str:
    """Return what the difference of an entry says, by the claim's rule."""
    if found.p_holm is not None and found.p_holm < claim.level:
        return "gain" if found.mean > 0 else "loss"
    if found.low is not None and found.high is not None and max(-found.low, found.high) < claim.smallest / 100:
        return "no difference of interest"
    return "inconclusive"


def summaries(name: str, claim: Claim, records: Sequence[Record]) -> tuple[Study, list[Summary]]:
    """Return the study that the records are of, and its summaries; none for incomplete or superseded claims."""
    study, _ = last_stage(claim.study, RESULTS / name)
    own = own_records(study, records)
    complete = claim.superseded_by is None and study.tuning is None and len(own) == len(study.runs())
    return study, summarize(study.entries, own) if complete else []


def power(claim: Claim) -> str:
    """Return what power the seeds of a claim have, at the standard deviation that it was planned with."""
    found = re.search(r"standard deviation of ([\d.]+) points", claim.seeds_from)
    if found is None:
        raise ValueError(
            f"expected seeds_from to name a standard deviation in points, got {claim.seeds_from!r}; add it"
        )
    number = sum(entry.baseline is not None for entry in claim.study.entries)
    value = power_of(claim.smallest, float(found[1]), len(claim.study.seeds), claim.level / number)
    return (
        f"{value:.2f} for a difference of {claim.smallest:.1f} points at that standard deviation, with "
        f"{len(claim.study.seeds)} seeds and at p < {claim.level:g} / {number}."
    )


def computed(claim: Claim, records: Sequence[Record]) -> str:
    """Return the precision of the runs of a claim, and by how much those of the claim that took its place differ."""
    names = {"no": "float32", "bf16": "bfloat16 (autocast)", "fp16": "float16 (autocast)"}
    text = f"in {names[claim.runtime.precision]}."
    if claim.superseded_by is None:
        return text
    text += (
        f" Stopped without a verdict and superseded by `{claim.superseded_by}`, which has the same question; the "
        "records are kept."
    )
    others = {(record.entry, record.run): record.score for record in read_kept(claim.superseded_by).values()}
    pairs = [(others[key], r.score) for r in records if (key := (r.entry, r.run)) in others]
    if len(pairs) > 1:
        found = paired_difference(*zip(*pairs, strict=True))
        text += f" The accuracy of the {found.n} runs that both have is {100 * found.mean:+.2f} points higher there"
        if found.low is not None and found.high is not None:
            text += f" (95 % CI {100 * found.low:+.2f} to {100 * found.high:+.2f})"
        text += "."
    return text


def overview(name: str, claim: Claim, records: Sequence[Record], found: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Return the lines of a claim in the table of all."""
    link = f"[{name}](#{name.replace('_', '-')})"
    if not found:
        state = f"{len(records)} of {count_runs(claim.study)} runs, no verdict" if records else "not yet run"
        if claim.superseded_by is not None:
            state = f"superseded, {len(records)} of {count_runs(claim.study)} runs"
        return [(link, "", "", "", "", state)]
    header, rows = difference_table(found)
    shown = [dict(zip(header, row, strict=True)) for row in rows]
    tested = [summary.difference for summary in found if summary.difference is not None]
    return [
        (link, row["entry"], row["difference"], row["95 % CI"], row["p (Holm)"], f"**{verdict(difference, claim)}**")
        for row, difference in zip(shown, tested, strict=True)
    ]


def section(name: str, claim: Claim, records: Sequence[Record], study: Study, found: Sequence[Summary]) -> str:
    """Return question, rule, and what came of a claim."""
    tuning, entries, seeds = claim.study.tuning, claim.study.entries, claim.study.seeds
    budget = f"{len(entries)} entries, {len(seeds)} seeds each, {count_runs(claim.study)} runs in all"
    if tuning is not None:
        budget += f", those of tuning included (other seeds: {len(tuning.seeds)}; held out: {tuning.validation:.0%})"
    lines = [
        f"## {name.replace('_', '-')}",
        claim.question,
        f"- Budget: {budget}.\n"
        f"- Smallest difference of interest: {claim.smallest:.1f} points. Level: {claim.level:g}.\n"
        f"- Seeds: {claim.seeds_from}\n- Power: {power(claim)}\n- Stopping: {claim.stopping}\n"
        f"- Computed: {computed(claim, records)}\n- File: [{name}.py](../claims/{name}.py).",
    ]
    if not found:
        return "\n\n".join([*lines, f"{len(records)} runs so far." if records else "Not yet run."])
    means = [
        (s.label, str(s.n), *(f"{100 * v:.2f}" if v is not None else "" for v in (s.mean, s.std, s.train_accuracy)))
        for s in found
    ]
    lines.append(markdown_table(("entry", "n", "accuracy, %", "std", "train accuracy, %"), means))
    lines.append(markdown_table(*difference_table(found)))
    if study.notes:
        lines.append("\n".join(f"- {note}" for note in study.notes))
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
