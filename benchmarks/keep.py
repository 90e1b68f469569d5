"""Keeps a study for the results page: its command, its table and every result, in one file without paths of a machine.

After ``backpass compare --out runs/digits``:

    python benchmarks/keep.py runs/digits benchmarks/results/compare-digits.json -- backpass compare
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backpass.experiments.plan import read_plan
from backpass.experiments.results import read_results

from backpass.experiments.tables import result_table

__all__ = ["kept"]


def kept(folder: Path, command: Sequence[str], notes: Sequence[str] = ()) -> dict[str, Any] | None:
    """Return what is kept of the study in ``folder``; ``None`` while it has no result.

    Args:
        folder: of the study.
        command: the words that started it, which its files do not tell; without options that say where and how fast.
        notes: what its files do not tell either, such as that other work ran beside it.
    """
    plan = read_plan(folder)
    if plan is None or not any(folder.rglob("result.json")):
        return None
    results = read_results(folder)
    runs = [vars(result) for result in results]
    table = result_table(plan, results).as_dict()
    table["notes"] = [*table["notes"], *notes]
    text = shlex.join(command)
    for run in runs:
        data = run["run"]["recipe"]["data"]
        kind, colon, path = data["name"].partition(":")
        if colon and path:  # where the images lie says nothing to others
            text = text.replace(data["name"], f"{kind}:PATH")
            data["name"] = f"{kind}:PATH"
    return {"command": text, "table": table, "runs": runs, "complete": len(results) == len(plan.cells())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--note", action="append", default=[], help="to stand under the table; may be repeated")
    parser.add_argument("command", nargs="+", help="after --, the command that made the folder")
    options = parser.parse_args()
    content = kept(options.folder, options.command, options.note)
    if content is None:
        raise SystemExit(f"expected a study with results in {options.folder}, found none")
    options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
