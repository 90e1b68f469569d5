import multiprocessing

import pytest
from backpass.experiments.cells import to_plain
from backpass.experiments.results import RunResult
from benchmarks.postgresql import missing, server

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
    if reason := missing():
        pytest.skip(reason)
    with server(fsync=False) as url:
        yield url


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
