"""Makes docs/results.md from the files in benchmarks/results, and from nothing else.

python benchmarks/page.py
"""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from backpass.experiments.statistics import Difference, paired_difference

from backpass.experiments.recipes import TABLES
from cost import PAPER
from sections import (
    cost,
    distributed,
    gpu_tests,
    loss_ratios,
    measuring,
    power_grad,
    published,
    studies,
    table,
    throughput,
)
from sgs import spread

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "results.md"
NOT_RUN = "not run"
DEVICES = ("cpu", "cuda")

COMPARISONS = {
    "compare-digits": "Digits, the settings of `backpass compare`",
    "compare-cifar10-jpeg": "VGG-11 with the small head on CIFAR-10 (JPEG), CPU",
    "compare-methods-cifar10-jpeg": "All methods, ten steps of VGG-16 with the small head on CIFAR-10 (JPEG), CPU",
    "reproduce-cifar10-jpeg": "A row of SGS Table 1, VGG-16 on CIFAR-10 (JPEG), cut short, CPU",
    "reproduce-cifar10-jpeg-table-4": "A row of SGS Table 4, VGG-11 on CIFAR-10 (JPEG), cut short, CPU",
    "accuracy-vgg16-cuda": "VGG-16 with the small head on CIFAR-10, GPU",
    "accuracy-vgg11-cuda": "VGG-11 with the small head on CIFAR-10, GPU",
    "accuracy-vgg11-autocorrelation-cuda": "The same VGG-11, GPU, SGS with autocorrelation",
    "accuracy-vgg11-branches-cuda": "The same VGG-11, GPU, SGS with the fixed scaling that ACB amounts to",
    "search-k-vgg11-cuda": "The same VGG-11, GPU, the search for k on held-out images",
}
OF_TABLE_1 = ("accuracy-vgg16-cuda", "reproduce-cifar10-jpeg")
OWN_COST = 1.01
NEAR = 0.15  # how far a peer's cost may be from the published one and still count as reproduced
PUBLISHED_RATIOS = PAPER["vgg16_small"]
PLAIN_OF = dict.fromkeys(("accuracy-vgg11-autocorrelation-cuda", "accuracy-vgg11-branches-cuda"), "accuracy-vgg11-cuda")
TABLE_1 = next(row for row in TABLES["sgs-table-1"].rows if row.label == "VGG-16, CIFAR-10")

HEAD = """# Results

Made by `benchmarks/page.py` from the files in [benchmarks/results](../benchmarks/results), which hold every raw value,
the versions and the hardware. "{not_run}" stands where there is no such file. Values are medians with quartiles in
brackets, unless a column says otherwise; n is the number of runs or of timings.

No table of either paper has been run here at its full length unless it is listed as run below. Comparisons of accuracy
on small data or short schedules say how training starts, and nothing about where the papers' schedules end.
"""


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(RESULTS))


def page(folder: Path) -> str:
    """Return the page that the files in ``folder`` make."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    sections = [
        HEAD.format(not_run=NOT_RUN),
        "## What was asked, and what was found\n\n" + claims(files),
        "## Accuracy\n\n" + "\n".join(comparison(files, name, title) for name, title in COMPARISONS.items()),
        "## The papers' tables\n\n" + paper_tables(files),
        "## Studies by several workers, some of them killed\n\n" + optional(files, "study-digits", studies),
        *by_device(files, "cost", "Cost of training, beside plain training", cost),
        *by_device(files, "sgs", "Measuring and scaling, VGG-16 with the small head", measuring),
        "## The published estimator beside this one\n\n" + optional(files, "sgs-published-cpu", published),
        "## Measuring on several processes\n\n" + optional(files, "sgs-distributed", distributed),
        *by_device(files, "pgt", "The PowerGrad loss beside plain cross-entropy", power_grad),
        *by_device(files, "throughput", "The trainer beside a bare loop", throughput),
        "## The trainer beside timm's script, a run of its own\n\n"
        + optional(files, "throughput-timm-cpu", throughput),
        "## Tests that need a GPU\n\n" + optional(files, "tests-cuda", gpu_tests),
        "## Where it was measured\n\n" + surroundings(files),
    ]
    return "\n".join(sections)


def by_device(files: dict[str, Any], kind: str, title: str, make: Callable[[Any], str]) -> Iterable[str]:
    for device in DEVICES:
        name = "CPU" if device == "cpu" else "GPU"
        yield f"## {title}: {name}\n\n" + optional(files, f"{kind}-{device}", make)


def optional(files: dict[str, Any], name: str, make: Callable[[Any], str]) -> str:
    """Return what ``make`` makes of a file, and says so where the file was cut short or is not there."""
    if name not in files:
        return f"{NOT_RUN.capitalize()}.\n"
    cut = "" if files[name].get("complete", True) else "Cut short by a limit of time: not all of it ran.\n\n"
    return cut + make(files[name])


def percent(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(100 * value, form)


# What was asked


def claims(files: dict[str, Any]) -> str:
    rows = [*accuracy_claims(files), *cost_claims(files)]
    return table(("claim", "asked for", "found", "n", "held"), rows)


def accuracy_claims(files: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    gain = f"{TABLE_1.published('sgs') - TABLE_1.published('plain'):+.2f} (paper, {TABLE_1.recipe.epochs} epochs)"
    for name in ("accuracy-vgg16-cuda", "accuracy-vgg11-cuda"):
        model = "VGG-16" if "vgg16" in name else "VGG-11"
        for method in ("sgs", "pgt", "sgs+pgt"):
            claim = f"{method} is more accurate than plain, {model}, CIFAR-10"
            asked = gain if (model, method) == ("VGG-16", "sgs") else "above 0"
            found = [difference(row) for row in lines(files, name) if row["method"] == method]
            known = found[0] if found else None
            if known is None or known.low is None or known.high is None:
                yield claim, asked, NOT_RUN, "", ""
                continue
            held = "yes" if known.low > 0 else "no, less" if known.high < 0 else "cannot be told"
            epochs = files[name]["runs"][0]["run"]["recipe"]["epochs"]
            interval = f"{percent(known.low, '+.2f')} to {percent(known.high, '+.2f')}"
            yield claim, asked, f"{percent(known.mean, '+.2f')} ({interval}), {epochs} epochs", str(known.n), held


def cost_claims(files: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    def claim(text: str, asked: str, values: Sequence[float], holds: Callable[[float], bool]) -> tuple[str, ...]:
        if len(values) < 2:
            return text, asked, NOT_RUN, "", ""
        held = "yes" if holds(statistics.median(values)) else "no"
        return text, asked, spread(list(values)), str(len(values)), held

    for device in DEVICES:
        results = files.get(f"cost-{device}", {}).get("results", [])
        rows = next((r["methods"] for r in results if r["model"] == "vgg16_small"), {})
        ratios = {method: rows.get(method, {}).get("run_ratios", []) for method in PUBLISHED_RATIOS}
        text = "time of a run beside plain, VGG-16"
        most = f"at most {PUBLISHED_RATIOS['sgs']} (paper)"
        yield claim(f"sgs: {text}, {device}", most, ratios["sgs"], lambda found: found <= PUBLISHED_RATIOS["sgs"])
        both = rows.get("sgs+pgt", {})
        ours = both.get("run_ratios", [])
        yield claim(f"sgs+pgt: {text}, {device}", f"at most {OWN_COST}", ours, lambda found: found <= OWN_COST)
        memory = both.get("memory_ratio")
        found = (f"{memory:.2f}", "1", "yes" if memory <= OWN_COST else "no") if memory else (NOT_RUN, "", "")
        yield f"sgs+pgt: peak memory beside plain, VGG-16, {device}", f"at most {OWN_COST}", *found
        for method in ("dbb_dyrep", "dyrep"):
            paper = PUBLISHED_RATIOS[method]
            asked = f"{paper} (paper), within {NEAR:.0%}"
            near = partial(math.isclose, paper, rel_tol=NEAR)
            yield claim(f"{method}: {text}, {device}", asked, ratios[method], near)
    rows = files.get("sgs-published-cpu", {}).get("rows", [])
    alone = min((r["ratios"] for r in rows if r["what"] == "estimate"), key=statistics.median, default=[])
    updates = [row for row in rows if row["what"] == "update"]
    most = max((row["images"] for row in updates), default=0)
    updates = [row for row in updates if row["images"] == most]
    whole = min((row["ratios"] for row in updates), key=statistics.median, default=[])
    text = "an SGS update is faster than the published one, on the most images, worst of the models, times"
    yield claim(text, "2", whole, lambda f: f >= 2)
    yield claim("its estimator alone, on maps in memory, worst of the sizes, times", "3.5", alone, lambda f: f >= 3.5)
    share = min((row["memory_mb"]["published"] / row["memory_mb"]["ours"] for row in updates), default=0.0)
    found = (f"1/{share:.0f}", "1", "yes" if share >= 30 else "no") if share else (NOT_RUN, "", "")
    yield "it takes a share of the published one's memory, worst of the models", "1/30", *found
    for device in DEVICES:
        for compiled, limit in ((False, 2.0), (True, 1.2)):
            results = [r for r in files.get(f"pgt-{device}", {}).get("results", []) if r["compiled"] == compiled]
            worst = max((loss_ratios(r) for r in results), key=statistics.median, default=[])
            mode = "compiled" if compiled else "eager"
            text = f"the PowerGrad loss beside the plain one, {mode}, worst of the sizes, {device}"
            yield claim(text, f"below {limit}", worst, lambda found, limit=limit: found < limit)
    for device, limit in zip(DEVICES, (0.95, 0.97), strict=True):
        results = files.get(f"throughput-{device}", {}).get("results", [])
        worst = min((r["ratios"] for r in results), key=statistics.median, default=[])
        text = f"speed of the trainer beside a bare loop, worst of the settings, {device}"
        yield claim(text, f"{limit}", worst, lambda found, limit=limit: found >= limit)


# Accuracy


def lines(files: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = files.get(name, {}).get("table", {}).get("rows", [])
    return rows


def difference(row: dict[str, Any]) -> Difference | None:
    return Difference(**row["difference"]) if row["difference"] else None


def comparison(files: dict[str, Any], name: str, title: str) -> str:
    """Return the table of one comparison; SGS alone is held against the plain runs of another file, by seed."""
    if not lines(files, name):
        return f"### {title}\n\n{NOT_RUN.capitalize()}.\n"
    others = {row["method"]: row["values"] for row in lines(files, PLAIN_OF.get(name, ""))}
    rows, verdicts = [], []
    for row in lines(files, name):
        known = difference(row)
        common = sorted(row["values"].keys() & others.get("plain", {}).keys())
        if common:
            known = paired_difference([row["values"][s] for s in common], [others["plain"][s] for s in common])
        interval = p = ""
        if known is not None and known.low is not None and known.high is not None and known.p is not None:
            interval = f"{percent(known.low, '+.2f')} to {percent(known.high, '+.2f')}"
            p = "<0.001" if known.p < 0.001 else f"{known.p:.3f}"
        if row["method"] != "plain":
            verdicts.append(verdict(row["label"], known))
        paper = TABLE_1.published(row["method"]) if name in OF_TABLE_1 else None
        rows.append(
            (
                row["label"],
                str(row["n"]),
                percent(row["mean"]) or NOT_RUN,
                percent(row["std"]),
                percent(known.mean if known else None, "+.2f"),
                interval,
                p,
                f"{paper:.2f}" if paper else "",
                time_ratios(files[name]["runs"], row["method"]),
            )
        )
    header = ("row", "n", "mean, %", "sd", "difference", "95 % interval", "p", "paper, %", "time beside plain")
    run = files[name]["runs"][0]
    length = f"{run['run']['recipe']['epochs']} epochs of {run['data']['train']} images"
    notes = [f"{length}: `{files[name]['command']}`.", *(f"Note: {note}." for note in files[name]["table"]["notes"])]
    if name in OF_TABLE_1:
        notes.append(f"The paper's numbers are those of {TABLE_1.recipe.epochs} epochs.")
    text = optional(files, name, lambda _: table(header, rows)) + "\n" + "".join(verdicts)
    return f"### {title}\n\n{text}\n" + " ".join(notes) + "\n"


def time_ratios(runs: list[dict[str, Any]], method: str) -> str:
    """Return training and measuring time beside plain, seed by seed, where each method was run in one way only."""
    seconds: dict[tuple[str, int], float] = {}
    for run in runs:
        key = run["run"].get("method", ""), run["run"].get("seed", 0)
        if key in seconds:
            return ""
        cost = run.get("cost", {})
        seconds[key] = cost.get("train_seconds", 0.0) + cost.get("measure_seconds", 0.0)
    ratios = [
        own / seconds["plain", seed]
        for (name, seed), own in seconds.items()
        if ("plain", seed) in seconds and name == method != "plain" and seconds["plain", seed]
    ]
    return spread(ratios) if len(ratios) > 1 else ""


def verdict(label: str, known: Difference | None) -> str:
    """Return one sentence on a difference to plain training."""
    if known is None or known.low is None or known.high is None or known.p is None:
        return f"- {label}: too few runs, or runs too much alike, to say anything.\n"
    interval = f"{percent(known.low, '+.2f')} to {percent(known.high, '+.2f')} points, n = {known.n}"
    if known.low <= 0 <= known.high:
        return f"- {label}: cannot be told from plain; the difference may be anything from {interval}.\n"
    side = "more" if known.low > 0 else "less"
    sure = (
        "few pairs, so the interval leans on the assumption of normal differences" if known.n < 5 else "paired by seed"
    )
    return f"- {label}: {side} accurate than plain here, by {interval} ({sure}).\n"


def paper_tables(files: dict[str, Any]) -> str:
    rows = []
    for name, planned in TABLES.items():
        run = [row for row in lines(files, name) if row["n"]]
        rows.append((planned.title, f"`backpass reproduce {name}`", f"{len(run)} lines" if run else NOT_RUN))
    return table(("table", "command", "run"), rows)


def surroundings(files: dict[str, Any]) -> str:
    rows = []
    for name, content in files.items():
        found = content.get("environment") or next((run["environment"] for run in content.get("runs", [])), None)
        if found is not None:
            torch = found.get("versions", {}).get("torch", found.get("torch", ""))
            device = found.get("accelerator", found.get("gpu")) or found["cpu"]
            rows.append((f"{name}.json", str(found["commit"]), torch, device, str(found["threads"])))
    return table(("file", "commit", "torch", "device", "CPU threads"), rows)


if __name__ == "__main__":
    main()
