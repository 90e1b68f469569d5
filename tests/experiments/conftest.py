import multiprocessing
from uuid import uuid4

import pytest
from benchmarks.postgresql import missing, server

from backpass.experiments.environment import Environment
from backpass.experiments.record import Cost, EvaluatedData, Record, TrainedModel
from backpass.training.recipe import Run, Runtime


@pytest.fixture(scope="session")
def processes():
    """Starts processes that have the library imported, and no threads of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["backpass.experiments.scheduling.worker"])
    return context


@pytest.fixture(scope="session")
def postgresql_server():
    """URL of the first database on a server of its own, on the loopback interface."""
    if reason := missing():
        pytest.skip(reason)
    with server(fsync=False) as url:
        yield url


@pytest.fixture
def postgresql(postgresql_server):
    """URL of a new, empty database."""
    import psycopg

    name = f"study_{uuid4().hex}"
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return postgresql_server.removesuffix("postgres") + name


@pytest.fixture
def make_record():
    """Makes a record by hand: accuracies by epoch, seconds of each epoch."""

    def make(
        recipe,
        method,
        seed,
        accuracies,
        *,
        entry="",
        seconds=1.0,
        split="test",
        cpu="a cpu",
        gpu_hours=None,
        peak=None,
        train_accuracy=None,
    ):
        trained = {} if train_accuracy is None else {"train_accuracy": train_accuracy}
        history = [
            {
                "epoch": epoch,
                f"{split}_accuracy": accuracy,
                "train_seconds": seconds,
                "measure_seconds": 0.0,
                "evaluate_seconds": 0.0,
                **trained,
            }
            for epoch, accuracy in enumerate(accuracies)
        ]
        return Record(
            run=Run(recipe, method, seed),
            entry=entry,
            data=EvaluatedData(label="digits", train=64, evaluated=30, split=split),
            model=TrainedModel(
                name=recipe.model,
                parameters=56554,
                macs=1790000,
                deployed_parameters=56554,
                deployed_macs=1790000,
            ),
            history=history,
            cost=Cost(
                train_seconds=seconds * len(accuracies),
                measure_seconds=0.0,
                evaluate_seconds=0.0,
                gpu_hours=gpu_hours,
                peak_memory=peak,
            ),
            scalings={},
            environment=Environment(
                commit=None,
                python="3.11",
                versions={"torch": "2.6"},
                platform="Linux",
                cpu=cpu,
                cpu_count=2,
                threads=1,
                accelerator=None,
                runtime=Runtime(device="cpu"),
            ),
        )

    return make
