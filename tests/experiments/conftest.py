import contextlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from backpass.experiments.cells import to_plain
from backpass.experiments.results import RunResult
from backpass.training.recipe import Run


@pytest.fixture(scope="session")
def processes():
    """Starts processes that have the library imported, and no threads of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["backpass.experiments.worker"])
    return context


@pytest.fixture(scope="session")
def postgresql():
    """URL of an empty database on a server of its own, on the loopback interface."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed: /usr/lib/postgresql/*/bin/initdb is missing")
    pytest.importorskip("psycopg", reason="psycopg, the driver of PostgreSQL, is not installed")
    binaries = found[-1].parent
    # The server refuses to run as root; the Debian package brings a user for it.
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp())
    if user:
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(program, *arguments):
        command = [*user, str(binaries / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    try:
        run("initdb", "--auth=trust", "--username=study", "--no-sync", "--encoding=UTF8")
        options = f"-c listen_addresses=127.0.0.1 -c fsync=off -p {port} -k {folder}"
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield f"postgresql://study@127.0.0.1:{port}/postgres"
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            run("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make_result():
    """Makes a result by hand: accuracies by epoch, seconds of each epoch."""

    def make(recipe, method, seed, accuracies, *, seconds=1.0, split="test", cpu="a cpu", gpu_hours=None, peak=None):

        history = [
            {
                "epoch": epoch,
                f"{split}_accuracy": accuracy,
                "train_seconds": seconds,
                "measure_seconds": 0.0,
                "evaluate_seconds": 0.0,
            }
            for epoch, accuracy in enumerate(accuracies)
        ]
        return RunResult(
            run=to_plain(Run(recipe, method, seed)),
            data={"label": "digits", "train": 64, "evaluated": 30, "split": split},
            model={
                "name": recipe.model,
                "parameters": 56554,
                "macs": 1790000,
                "deployed_parameters": 56554,
                "deployed_macs": 1790000,
            },
            history=history,
            cost={
                "train_seconds": seconds * len(accuracies),
                "measure_seconds": 0.0,
                "evaluate_seconds": 0.0,
                "gpu_hours": gpu_hours,
                "peak_memory": peak,
            },
            scalings={},
            environment={
                "commit": None,
                "python": "3.11",
                "versions": {"torch": "2.6"},
                "platform": "Linux",
                "cpu": cpu,
                "cpu_count": 2,
                "threads": 1,
                "accelerator": None,
                "runtime": {},
            },
        )

    return make
