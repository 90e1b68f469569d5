"""Two processes that train together."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch


def on_two_processes(target: Callable[[int, Path], None], folder: Path) -> None:
    """Call ``target(rank, folder)`` in two processes, as a launcher starts them; both must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_as_rank, args=(target, rank, port, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
        process.terminate()  # one whose twin has failed would wait
    assert [process.exitcode for process in ranks] == [0, 0]


def _as_rank(target: Callable[[int, Path], None], rank: int, port: int, folder: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    target(rank, folder)
