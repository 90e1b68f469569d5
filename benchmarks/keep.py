"""Keeps a study for the results page: command, study, records and notes in one file without paths of a machine.

After ``backpass compare --out runs/digits``:

    python benchmarks/keep.py runs/digits benchmarks/results/compare-digits.json -- backpass compare
"""

import argparse
import json
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from backpass.experiments.record import RECORD_FILE, read_record
from backpass.experiments.serialization import to_json
from backpass.experiments.study import read_study
from backpass.training.dense.datasets import DENSE_KINDS
from backpass.training.recipe import DataSettings
from tools import write_json

__all__ = ["kept"]


def kept(folder: Path, command: Sequence[str], notes: Sequence[str] = ()) -> dict[str, Any] | None:
    """Return what is kept of the study in ``folder``; ``None`` while it has no record.

    Args:
        folder: of the study.
        command: the words that started it, which its files do not have; without options of place and speed.
        notes: what its files do not have either, such as that other programs ran at the same time.
    """
    study = read_study(folder)
    paths = [] if study is None else [folder / run.folder / RECORD_FILE for run in study.runs()]
    records = [read_record(path) for path in paths if path.is_file()]
    if study is None or not records:
        return None
    content: dict[str, Any] = {
        "command": list(command),
        "study": json.loads(to_json(study)),
        "records": [json.loads(to_json(record)) for record in records],
        "notes": list(notes),
        "complete": len(records) == len(paths),
    }
    recipes = [entry.recipe for entry in study.entries if entry.recipe is not None]
    recipes += [record.run.recipe for record in records]
    content = _replace_paths(content, {path for recipe in recipes for path in _paths(recipe.data)})
    return content | {"command": shlex.join(content["command"])}


def _paths(data: DataSettings) -> Iterator[str]:
    kind, _, path = data.name.partition(":")
    if path and kind in ("folder", "imagenet", *DENSE_KINDS):
        yield path
    if data.root:
        yield data.root


def _replace_paths(value: Any, paths: Collection[str]) -> Any:
    """Return plain values without these paths: absolute ones anywhere, others alone or after a colon or equals sign."""
    if isinstance(value, dict):
        return {key: _replace_paths(part, paths) for key, part in value.items()}
    if isinstance(value, list):
        return [_replace_paths(part, paths) for part in value]
    if isinstance(value, str):
        for path in sorted(paths, key=len, reverse=True):
            before = "" if Path(path).is_absolute() else "(?:^|(?<=[:=]))"
            value = re.sub(rf"{before}{re.escape(path)}(?![\w.-])", "PATH", value)
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--note", action="append", default=[], help="to stand under the table; may be repeated")
    parser.add_argument("command", nargs="+", help="after --, the command that made the folder")
    options = parser.parse_args()
    content = kept(options.folder, options.command, options.note)
    if content is None:
        raise SystemExit(f"expected a study with records in {options.folder}, found none")
    write_json(options.output, content)


if __name__ == "__main__":
    main()
