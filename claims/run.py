"""Runs claims, resumes them, and keeps their records in claims/results.

    python claims/run.py                          # all claims, one after the other
    python claims/run.py fixed_vgg_100_classes    # one of them
    python claims/run.py NAME --entries plain sgs # some of its entries first; what is chosen for them stays

The images are expected in data/ (see claims/README.md). Records that are kept already are not run again, on whatever
machine they were made; nor are runs that another claim has computed with the same runtime.
"""

import argparse
import gzip
import importlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna

from backpass.experiments import Record, Study, run_study
from backpass.experiments.choices import CHOICES_FILE
from backpass.experiments.progress_bars import progress_bars
from backpass.experiments.record import RECORD_FILE, records_at
from backpass.experiments.scheduling.termination import when_terminated
from backpass.experiments.serialization import to_json
from backpass.experiments.stages import next_runs
from backpass.experiments.study import StudyRun, study_records
from backpass.training.checkpoint import atomic_write
from backpass.training.recipe import Runtime
from claim import Claim

__all__ = ["NAMES", "RESULTS", "load_claim", "read_kept"]

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RECORDS = "records.jsonl.gz"
_TOOLS = ("claim", "page", "picture", "run", "settings")
NAMES = tuple(path.stem for path in sorted(HERE.glob("*.py")) if path.stem not in _TOOLS)


def load_claim(name: str) -> Claim:
    """Return the claim of the file ``claims/NAME.py``."""
    claim: Claim = importlib.import_module(name).CLAIM
    return claim


def read_kept(name: str) -> dict[str, Record]:
    """Return the records of a claim that are kept, by the name of their folder."""
    path = RESULTS / name / RECORDS
    records = records_at(path) if path.is_file() else []
    return {StudyRun(record.entry, record.run).folder: record for record in records}


def keep(name: str, folder: Path) -> None:
    """Add the records of the folder to those that are kept, and what its tuning has chosen."""
    records = read_kept(name) | {StudyRun(r.entry, r.run).folder: r for r in study_records(folder)}
    if not records:
        return
    lines = [json.dumps(json.loads(to_json(records[key])), separators=(",", ":")) for key in sorted(records)]
    (RESULTS / name).mkdir(parents=True, exist_ok=True)
    # Without a time of writing, so that equal records make equal files.
    atomic_write(RESULTS / name / RECORDS, gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
    if (folder / CHOICES_FILE).is_file():
        shutil.copy(folder / CHOICES_FILE, RESULTS / name)


def restore(name: str, folder: Path) -> None:
    """Write what is kept into the folder of the study, so that its runs are complete."""
    for key, record in read_kept(name).items():
        if not (folder / key / RECORD_FILE).is_file():
            (folder / key).mkdir(parents=True, exist_ok=True)
            record.write(folder / key / RECORD_FILE)
    if (RESULTS / name / CHOICES_FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(RESULTS / name / CHOICES_FILE, folder)


def borrow(name: str, study: Study, runtime: Runtime, folder: Path) -> None:
    """Write the records that other claims have of runs of the study, as far as these are known, with this runtime."""
    others = [record for other in NAMES if other != name for record in read_kept(other).values()]
    found = {record.run: record for record in others if record.environment.runtime == runtime}
    for run in next_runs(study, folder):
        path = folder / run.folder / RECORD_FILE
        if run.run in found and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(found[run.run], entry=run.entry).write(path)


def run(name: str, folder: Path, *, entries: Sequence[str], processes: int) -> None:
    """Run what is missing of a claim, all of it or some of its entries, and keep every record."""
    claim = load_claim(name)
    restore(name, folder)
    study = _only(claim.study, entries) if entries else claim.study
    # Tuning on its own first: only then is it known which runs of the second stage other claims have.
    stages = [study] if study.tuning is None else [replace(study, seeds=()), study]
    try:
        for stage in stages:
            borrow(name, stage, claim.runtime, folder)
            with when_terminated(), progress_bars(quiet=False) as progress:
                result = run_study(stage, folder, runtime=claim.runtime, processes=processes, progress=progress)
            result.check()
    finally:
        keep(name, folder)


def _only(study: Study, keys: Sequence[str]) -> Study:
    if unknown := set(keys) - {entry.key for entry in study.entries}:
        raise SystemExit(f"expected keys of entries, got {sorted(unknown)}")
    return replace(study, entries=tuple(replace(e, baseline=None) for e in study.entries if e.key in keys))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="default: all but the superseded ones")
    parser.add_argument("--entries", nargs="+", default=(), help="keys of the entries to run; default: all")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "claims", help="of the run folders")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.chdir(HERE.parent)  # The images' folder is relative to it.
    for name in options.names or [name for name in NAMES if load_claim(name).superseded_by is None]:
        run(name, options.folder / name, entries=options.entries, processes=options.processes)


if __name__ == "__main__":
    main()
