"""Makes docs/results.md from the files in benchmarks/results, and from nothing else.

python benchmarks/results_page.py
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
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

Made by `benchmarks/results_page.py` from the files in [benchmarks/results](../benchmarks/results), which hold every raw
value, the versions and the hardware. What has no file there was not run, and is named in the last section; the one
before it has the command of each file.

Times are medians with quartiles in brackets; n is the number of runs or of timings. A claim is *held* when the 95 %
confidence interval of the mean lies within its bound, *not held* when it lies outside, and *inconclusive* in between.
Tables of accuracy leave out the times of their runs: cost and speed have sections of their own.
"""

COMMANDS = """The commands measure again what the files hold, in a checkout of this repository; that of
`sgs-published-cpu.json` measures more. `PATH` and `FOLDER` are places on your machine, and `../old` is a worktree of
the older commit. `benchmarks/keep.py` makes a file of accuracy from the folder of a study.

"""


@dataclass(frozen=True)
class Benchmark:
    """A raw file and what the page makes of it.

    Attributes:
        file: stem of the raw file.
        title: of its section.
        script: the script below ``benchmarks`` that makes the file, with its arguments.
        section: makes the section from the file's content.
    """

    file: str
    title: str
    script: str
    section: Callable[[Any], str]

    @property
    def command(self) -> str:
        """The command that makes the file."""
        return f"python benchmarks/{self.script}"


_COST = "Cost of training relative to the baseline"
_SGS = "SGS: update and scaling, VGG-16 with the small head"
_PGT = "The PowerGrad loss and cross-entropy"
_OLD_NEW = "SGS before and after its measuring code was rewritten"
BENCHMARKS = (
    Benchmark("study-digits", "Studies with killed workers", "study.py", studies),
    Benchmark("cost-cpu", f"{_COST}, cpu", "cost.py --models vgg16_small resnet18 --steps 1 --rounds 3", cost),
    Benchmark("cost-cuda", f"{_COST}, cuda", "cost.py --device cuda", cost),
    Benchmark("sgs-cpu", f"{_SGS}, cpu", "sgs.py", measuring),
    Benchmark("sgs-cuda", f"{_SGS}, cuda", "sgs.py --device cuda", measuring),
    Benchmark("pgt-cpu", f"{_PGT}, cpu", "pgt.py --threads 1", power_grad),
    Benchmark("pgt-cuda", f"{_PGT}, cuda", "pgt.py --device cuda", power_grad),
    Benchmark("throughput-cpu", "The trainer and a bare loop, cpu", "throughput.py", throughput),
    Benchmark("throughput-cuda", "The trainer and a bare loop, cuda", "throughput.py --device cuda", throughput),
    Benchmark(
        "throughput-timm-cpu",
        "The trainer and timm's script, cpu",
        "throughput.py --timm-script PATH --models vgg11_small --batches 128 "
        "--output benchmarks/results/throughput-timm-cpu.json",
        throughput,
    ),
    Benchmark(
        "sgs-published-cpu",
        "The published estimator and ours, cpu",
        "sgs_published.py --published FOLDER --sizes 2 10 20",
        published,
    ),
    Benchmark(
        "sgs-old-new",
        f"{_OLD_NEW}, CPU time",
        "sgs_old_new.py --old ../old/src --commits 6d54c3b 87c8522 "
        "--only 'update 2' 'scale 32' 'memory 2' 'update 20' 'memory 20'",
        old_new,
    ),
    Benchmark(
        "sgs-old-new-wall",
        f"{_OLD_NEW}, wall time",
        "sgs_old_new.py --old ../old/src --commits 6d54c3b 7a01dd0 --clock wall "
        "--only 'update 2' 'scale 32' 'step 32' 'update 20' --output benchmarks/results/sgs-old-new-wall.json",
        old_new,
    ),
    Benchmark("sgs-distributed", "SGS: update on several processes", "sgs_distributed.py", distributed),
    Benchmark("tests-cuda", "Tests that need a GPU", "gpu.py", gpu_tests),
)


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(RESULTS))


def page(folder: Path) -> str:
    """Return the page that the files in ``folder`` make."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    kept = {name: content for name, content in files.items() if "study" in content and "records" in content}
    made = [
        (benchmark.title, benchmark.section(files[benchmark.file]), files[benchmark.file])
        for benchmark in BENCHMARKS
        if benchmark.file in files
    ]
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
    """Return one sentence on a difference to the baseline: whether it is detected after Holm's correction."""
    known = summary.difference
    if known is None or known.low is None or known.high is None:
        return f"- {summary.name}: too few runs, or no spread, for an interval.\n"
    interval = f"{100 * known.low:+.2f} to {100 * known.high:+.2f} points, n = {known.n}"
    if known.p_holm is None or known.p_holm >= 0.05:
        return f"- {summary.name}: no difference to the baseline detected; 95 % CI {interval}.\n"
    side = "higher" if known.mean > 0 else "lower"
    return f"- {summary.name}: accuracy is {side} than the baseline's at these settings; 95 % CI {interval}.\n"


# The rest


def not_run(files: dict[str, Any], kept: dict[str, Any]) -> str:
    run = {name for content in kept.values() for name in TABLES if f"({name})" in content["study"]["title"]}
    missing = {
        "Published tables (`backpass reproduce TABLE`)": [f"`{name}`" for name in TABLES if name not in run],
        "Benchmarks": [benchmark.title for benchmark in BENCHMARKS if benchmark.file not in files],
        "Claims": [claim.subject for claim in CLAIMS if claim.file not in files],
    }
    return "".join(f"- {what}: {'; '.join(names)}.\n" for what, names in missing.items() if names)


def environments(files: dict[str, Any]) -> str:
    commands = {benchmark.file: benchmark.command for benchmark in BENCHMARKS}
    rows = []
    for name, content in files.items():
        where = content.get("environment") or next((r["environment"] for r in content.get("records", [])), None)
        if where is not None:
            device = where["accelerator"] or where["cpu"]
            command = content.get("command") or commands.get(name)
            rows.append(
                (
                    f"{name}.json",
                    where["commit"] or "not recorded",
                    where["versions"]["torch"],
                    device,
                    str(where["threads"]),
                    f"`{command}`" if command else "not recorded",
                )
            )
    header = ("file", "commit", "torch", "device", "CPU threads", "command")
    return COMMANDS + markdown_table(header, rows) + "\n" if rows else "Not run.\n"


if __name__ == "__main__":
    main()
