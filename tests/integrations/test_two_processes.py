"""Frameworks in two processes on gloo: every process makes the steps of the plain loop on the whole batches.

Run by torchrun, this module is the training script.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from integrations.plain_loop import BATCH, Gradients, assert_same, loader, plain

PROCESSES = 2


def lightning(folder: Path) -> Gradients:
    """Train with Lightning, whose own sampler would shuffle."""
    from integrations.test_lightning import trained

    images = loader().dataset
    sampler = DistributedSampler(images, PROCESSES, int(os.environ["RANK"]), shuffle=False)
    batches = DataLoader(images, batch_size=BATCH // PROCESSES, sampler=sampler)
    options = {"devices": PROCESSES, "strategy": "ddp", "use_distributed_sampler": False}
    steps: Gradients = trained(folder, batches=batches, **options)[0]
    return steps


def transformers(folder: Path) -> Gradients:
    """Train with the Hugging Face Trainer."""
    from integrations.test_transformers import trained

    return trained(folder, batch=BATCH // PROCESSES)


FRAMEWORKS: dict[str, Callable[[Path], Gradients]] = {"lightning": lightning, "transformers": transformers}


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_gradients_are_those_of_the_plain_loop(framework: str, tmp_path: Path) -> None:
    pytest.importorskip(framework)
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    done = subprocess.run(
        [*launch, __file__, framework, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for rank in range(PROCESSES):
        steps = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_same(steps, plain())
        with pytest.raises(AssertionError, match="step"):
            assert_same(steps, plain(sgs=False))


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    torch.save(FRAMEWORKS[sys.argv[1]](folder), folder / f"{os.environ['RANK']}.pt")
