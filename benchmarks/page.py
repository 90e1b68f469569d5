"""Makes docs/results.md from the files in benchmarks/results, and from nothing else.

python benchmarks/page.py
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from backpass.experiments import Record, Study, result_table
from backpass.experiments.reporting.statistics import Summary
from backpass.experiments.reporting.tables import ResultTable, markdown_table
from backpass.experiments.serialization import from_json
from backpass.experiments.tables import TABLES
from claims import CLAIMS, Claim, Verdict, judge
from sections import cost, distributed, gpu_tests, measuring, old_new, power_grad, published, studies, throughput

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "results.md"

HEAD = """# Results

Made by `benchmarks/page.py` from the files in [benchmarks/results](../benchmarks/results), which hold every raw value,
the versions and the hardware. What has no file there was not run, and is named in the last section.

Times are medians with quartiles in brackets; n is the number of runs or of timings. A claim is *held* when the 95 %
confidence interval of the mean lies within its bound, *not held* when it lies outside, and *inconclusive* in between.
Tables of accuracy leave out the times of their runs: cost and speed have sections of their own.
"""

# Stem of the raw file, title, and what makes the section.
_Section = tuple[str, str, Callable[[Any], str]]
BENCHMARKS: tuple[_Section, ...] = (
    ("study-digits", "Studies with killed workers", studies),
    *(
        (f"{name}-{device}", f"{title}, {device}", make)
        for name, title, make in (
            ("cost", "Cost of training relative to the baseline", cost),
            ("sgs", "SGS: update and scaling, VGG-16 with the small head", measuring),
            ("pgt", "The PowerGrad loss and cross-entropy", power_grad),
            ("throughput", "The trainer and a bare loop", throughput),
        )
        for device in ("cpu", "cuda")
    ),
    ("throughput-timm-cpu", "The trainer and timm's script, cpu", throughput),
    ("sgs-published-cpu", "The published estimator and ours, cpu", published),
    ("sgs-old-new", "SGS before and after its measuring code was rewritten, CPU time", old_new),
    ("sgs-old-new-wall", "SGS before and after its measuring code was rewritten, wall time", old_new),
    ("sgs-distributed", "SGS: update on several processes", distributed),
    ("tests-cuda", "Tests that need a GPU", gpu_tests),
)


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(RESULTS))


def page(folder: Path) -> str:
    """Return the page that the files in ``folder`` make."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    kept = {name: content for name, content in files.items() if "study" in content and "records" in content}
    made = [(title, make(files[name]), files[name]) for name, title, make in BENCHMARKS if name in files]
    sections = [
        HEAD,
        "## Claims on cost and speed\n\n" + claims_table(files),
        "## Accuracy\n\n" + ("\n".join(comparison(content) for content in kept.values()) or "Not run.\n"),
        *(f"## {title}\n\n{_cut(content)}{text}" for title, text, content in made),
        "## Where it was measured\n\n" + environments(files),
        "## Not run\n\n" + not_run(files, kept),
    ]
    return "\n".join(sections)


def _cut(content: Any) -> str:
    return "" if content.get("complete", True) else "Cut short by a limit of time: not all of it ran.\n\n"


# Claims


def claims_table(files: dict[str, Any]) -> str:
    rows = [
        (claim.subject, claim.required, found(verdict), str(verdict.n), verdict.verdict)
        for claim, verdict in verdicts(files)
    ]
    return (
        markdown_table(("claim", "required", "mean (95 % CI)", "n", "verdict"), rows) + "\n" if rows else "Not run.\n"
    )


def verdicts(files: dict[str, Any]) -> list[tuple[Claim, Verdict]]:
    """Return the claims that have values, with their verdicts."""
    pairs = [(claim, judge(claim, files[claim.file])) for claim in CLAIMS if claim.file in files]
    return [(claim, verdict) for claim, verdict in pairs if verdict is not None]


def found(verdict: Verdict) -> str:
    interval = "" if verdict.low is None else f" ({verdict.low:.3g} to {verdict.high:.3g})"
    return f"{verdict.mean:.3g}{interval}{f', {verdict.setting}' if verdict.setting else ''}"


# Accuracy

# Left out: other programs ran next to these runs.
_TIMES = ("relative time", "seconds", "GPU hours")


def comparison(content: Any) -> str:
    """Return table and verdicts of one kept study."""
    study = from_json(Study, json.dumps(content["study"]), "study")
    records = [from_json(Record, json.dumps(record), "record") for record in content["records"]]
    table = without_times(result_table(study, records))
    run = records[-1]  # of the last stage, where there are two
    data = f"{run.run.recipe.epochs} epochs of {run.data.train} images, `{content['command']}`."
    notes = " ".join(f"Note: {note}." for note in content["notes"])
    sentences = "".join(sentence(summary) for summary in table.summaries if summary.difference)
    title, _, text = table.markdown().partition("\n")
    return f"### {title.strip('*')}\n\n{data} {notes}".rstrip() + f"\n\n{_cut(content)}{text.strip()}\n\n{sentences}"


def without_times(table: ResultTable) -> ResultTable:
    """Return the table without the times of its runs."""
    kept = [number for number, name in enumerate(table.header) if name not in _TIMES]
    header, *rows = (tuple(row[number] for number in kept) for row in (table.header, *table.rows))
    return replace(table, header=header, rows=tuple(rows))


def sentence(summary: Summary) -> str:
    """Return one sentence on a difference to the baseline."""
    known = summary.difference
    if known is None or known.low is None or known.high is None:
        return f"- {summary.label}: too few runs, or no spread, for an interval.\n"
    interval = f"{100 * known.low:+.2f} to {100 * known.high:+.2f} points, n = {known.n}"
    if known.low <= 0 <= known.high:
        return f"- {summary.label}: no difference to the baseline detected; 95 % CI {interval}.\n"
    side = "higher" if known.low > 0 else "lower"
    return f"- {summary.label}: accuracy is {side} than the baseline's at these settings; 95 % CI {interval}.\n"


# The rest


def not_run(files: dict[str, Any], kept: dict[str, Any]) -> str:
    run = {name for content in kept.values() for name in TABLES if f"({name})" in content["study"]["title"]}
    missing = {
        "Published tables (`backpass reproduce TABLE`)": [f"`{name}`" for name in TABLES if name not in run],
        "Benchmarks": [title for name, title, _ in BENCHMARKS if name not in files],
        "Claims": [claim.subject for claim in CLAIMS if claim.file not in files],
    }
    return "".join(f"- {what}: {'; '.join(names)}.\n" for what, names in missing.items() if names)


def environments(files: dict[str, Any]) -> str:
    rows = []
    for name, content in files.items():
        where = content.get("environment") or next((r["environment"] for r in content.get("records", [])), None)
        if where is not None:
            device = where["accelerator"] or where["cpu"]
            rows.append(
                (
                    f"{name}.json",
                    where["commit"] or "not recorded",
                    where["versions"]["torch"],
                    device,
                    str(where["threads"]),
                )
            )
    return markdown_table(("file", "commit", "torch", "device", "CPU threads"), rows) + "\n" if rows else "Not run.\n"


if __name__ == "__main__":
    main()
