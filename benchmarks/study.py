"""Claim: a study gives the same records by one worker or by four of which two are killed, and each run completes once.

Runs three studies on scikit-learn's digits: the searches for k of SGS and alpha of PGT, and a table of three models and
four methods. Each is run by one worker; by four on one SQLite file; and by four on a PostgreSQL server of its own on
the loopback interface, where the Debian package is installed. Of four workers two are killed with SIGKILL, each in
the middle of a run. Prints a line for each way; writes what was killed, which runs were tried again, and all raw
accuracies as JSON. Losses, accuracies and scalings must equal those of the one worker bit for bit.

    python benchmarks/study.py        # -> benchmarks/results/study-digits.json
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

import postgresql
from backpass.experiments.entry import Entry
from backpass.experiments.environment import environment
from backpass.experiments.recipes import get_recipe
from backpass.experiments.record import RECORD_FILE, Record, read_record
from backpass.experiments.reporting.tables import result_table
from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.scheduling.storage import open_storage
from backpass.experiments.search import search_study
from backpass.experiments.serialization import to_json
from backpass.experiments.study import Study, make_key
from backpass.training.recipe import Recipe, Runtime
from tools import write_json

OUTPUT = Path(__file__).parent / "results" / "study-digits.json"
MODELS = ("digits_net", "nonorm_resnet18", "resnet18")
METHODS = ("plain", "sgs", "pgt", "sgs+pgt")
SEEDS = (0, 1, 2)
WORKERS, KILLED = 4, 2
HEARTBEAT, GRACE = 0.5, 6.0  # the defaults, 10 and 60 s, would outlast these runs
LONGEST_WAY = 1800.0
CPU = Runtime(device="cpu")


def studies() -> dict[str, Study]:
    """Return the three studies."""
    recipe = get_recipe("digits")
    short = replace(recipe, epochs=10)
    shorter = replace(recipe, epochs=5, data=replace(recipe.data, limit_test=120))
    return {
        "search-sgs.k": search_study("sgs.k", short, SEEDS),
        "search-pgt.alpha": search_study("pgt.alpha", short, SEEDS),
        "table": Study("three models on digits", _entries(shorter), SEEDS),
    }


def _entries(recipe: Recipe) -> tuple[Entry, ...]:
    return tuple(
        Entry(
            make_key(model, method),
            model,
            method,
            replace(recipe, model=model),
            baseline=None if method == "plain" else make_key(model, "plain"),
        )
        for model in MODELS
        for method in METHODS
    )


def run_way(study: Study, address: str, name: str, folder: Path, workers: int, victims: int) -> dict[str, Any]:
    """Run the study by ``workers`` processes, kill ``victims`` of them, and return what happened."""
    runs = study.runs()
    started: list[subprocess.Popen[bytes]] = []
    with closing(Queue.create(address, name, folder=folder, runtime=CPU)) as queue:
        queue.fill(runs)
        where = ["--study", address, "--name", name, "--out", str(folder), "--json"]
        times = ["--heartbeat", str(HEARTBEAT), "--grace", str(GRACE)]
        command = [sys.executable, "-m", "backpass", "worker", *where, *times]
        variables = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        begin = time.perf_counter()
        try:
            for _ in range(workers):
                started.append(subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL))
            kills = kill_in_mid_run(queue, started, folder, victims)
            codes = [process.wait(LONGEST_WAY) for process in started]
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
        seconds = time.perf_counter() - begin
    for kill in kills:
        kept, lines = kill.pop("metrics"), (folder / kill["run"] / "metrics.jsonl").read_text().splitlines()
        kill["epochs_kept"] = len(kept)
        kill["resumed"] = lines[: len(kept)] == kept
    return {
        "workers": workers,
        "exit_codes": codes,
        "seconds": seconds,
        "killed": kills,
        **endings(address, name, [run.folder for run in runs], [process.pid for process in started]),
    }


def kill_in_mid_run(
    queue: Queue, started: list[subprocess.Popen[bytes]], folder: Path, victims: int
) -> list[dict[str, Any]]:
    """Kill workers whose run has some of its epochs behind it, but no more than half; return the runs."""
    alive = {str(process.pid): number for number, process in enumerate(started)}
    kills: list[dict[str, Any]] = []
    while len(kills) < victims:
        if all(process.poll() is not None for process in started):
            raise RuntimeError(f"expected to kill {victims} workers, but all had ended after {len(kills)}")
        for state in queue.states():
            pid = (state.worker or "").rpartition(":")[2]
            metrics = folder / state.run.folder / "metrics.jsonl"
            if pid not in alive or len(kills) == victims or not metrics.is_file():
                continue
            if 1 <= len(metrics.read_text().splitlines()) <= state.run.run.recipe.epochs // 2:
                number = alive.pop(pid)
                started[number].send_signal(signal.SIGKILL)
                started[number].wait()
                kept = metrics.read_text().splitlines()
                kills.append({"worker": number, "run": state.run.folder, "metrics": kept})
        time.sleep(0.1)
    return kills


def endings(address: str, name: str, folders: list[str], pids: list[int]) -> dict[str, Any]:
    """Return how the trials of every run ended, as the storage holds them."""
    trials = optuna.load_study(study_name=name, storage=open_storage(address)).get_trials()
    by_run: dict[str, list[str]] = {folder: [] for folder in folders}
    done: Counter[int] = Counter()
    for trial in trials:
        state = trial.state.name.lower()
        by_run[trial.user_attrs["folder"]].append(trial.user_attrs.get("ending", state))
        if state == "complete":
            done[pids.index(int(trial.user_attrs["beat"][0].rpartition(":")[2]))] += 1
    return {
        "completions": sum(done.values()),
        "each_run_completed_once": all(states.count("complete") == 1 for states in by_run.values()),
        "tried_again": {folder: states for folder, states in by_run.items() if len(states) > 1},
        "runs_by_worker": [done[number] for number in range(len(pids))],
    }


def essence(record: Record) -> tuple[Any, ...]:
    """Return what must not depend on who computed the run, or when."""
    history = [{k: v for k, v in values.items() if not k.endswith("_seconds")} for values in record.history]
    return record.run, history, record.scalings


def check(way: dict[str, Any], study: Study, folder: Path, alone: Path) -> None:
    """Add the raw accuracies of a way, and whether all went as it must."""
    names = [run.folder for run in study.runs()]
    ours, theirs = ([read_record(place / name / RECORD_FILE) for name in names] for place in (folder, alone))
    way["accuracies"] = {name: record.by_epoch("accuracy") for name, record in zip(names, ours, strict=True)}
    way["equal_to_one_worker"] = all(essence(a) == essence(b) for a, b in zip(ours, theirs, strict=True))
    interrupted = [kill["run"] for kill in way["killed"]]
    codes = [-signal.SIGKILL] * len(interrupted) + [0] * (way["workers"] - len(interrupted))
    way["as_claimed"] = (
        way["equal_to_one_worker"]
        and way["each_run_completed_once"]
        and all("lost" in way["tried_again"].get(run, ()) for run in interrupted)
        and all(kill["resumed"] for kill in way["killed"])
        and sorted(way["exit_codes"]) == codes
    )


def run_studies(work: Path, server: str | None) -> list[dict[str, Any]]:
    """Run every study in every way, and print a line for each."""
    print("| study | runs | workers, storage | s | killed in (epochs kept) | tried again | once each | equal |")
    print("|---|---|---|---|---|---|---|---|")
    found = []
    for name, study in studies().items():
        ways: dict[str, tuple[str | None, int, int]] = {
            "one, SQLite": (None, 1, 0),
            "four, SQLite": (None, WORKERS, KILLED),
        }
        if server is not None:
            ways["four, PostgreSQL"] = (server, WORKERS, KILLED)
        runs: dict[str, dict[str, Any]] = {}
        alone = work / name / "one-SQLite"
        for way, (address, workers, victims) in ways.items():
            folder = work / name / way.replace(", ", "-")
            runs[way] = run_way(study, address or str(folder), name, folder, workers, victims)
            check(runs[way], study, folder, alone)
            print(f"| {name} | {len(study.runs())} | {way} | {_line(runs[way])} |", flush=True)
        records = [read_record(alone / run.folder / RECORD_FILE) for run in study.runs()]
        table = result_table(study, records)
        print(f"\n{table.markdown()}", flush=True)
        found.append({"study": name, "runs": len(study.runs()), "ways": runs, "table": table.as_dict()})
    return found


def _line(way: dict[str, Any]) -> str:
    killed = ", ".join(f"{kill['run']} ({kill['epochs_kept']})" for kill in way["killed"])
    once, equal = ("yes" if way[key] else "NO" for key in ("each_run_completed_once", "equal_to_one_worker"))
    if way["workers"] == 1:
        equal = ""
    return f"{way['seconds']:.1f} | {killed} | {', '.join(way['tried_again'])} | {once} | {equal}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    skipped = postgresql.missing()
    if skipped:
        print(f"without PostgreSQL: {skipped}")
    with tempfile.TemporaryDirectory() as work, contextlib.nullcontext() if skipped else postgresql.server() as server:
        found = run_studies(Path(work), server)
    evidence = {
        "environment": json.loads(to_json(environment(CPU))) | {"threads": 1},
        "heartbeat": HEARTBEAT,
        "grace": GRACE,
        "postgresql_skipped": skipped,
        "studies": found,
    }
    write_json(options.output, evidence)
    if not all(way["as_claimed"] for study in found for way in study["ways"].values()):
        raise SystemExit(f"the claim does not hold; see {options.output}")


if __name__ == "__main__":
    main()
