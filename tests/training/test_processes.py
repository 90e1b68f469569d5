import pytest
import torch

from backpass.errors import InputError
from backpass.training.processes import build_accelerator, epoch_seed
from backpass.training.recipe import Runtime


def test_a_device_without_float64_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(InputError, match=r"got MPS; train on the CPU, with --runtime.device cpu$"):
        build_accelerator(Runtime())
    assert build_accelerator(Runtime(device="cpu")).device.type == "cpu"


def test_no_process_repeats_an_epoch_of_another():
    seeds = {epoch_seed(seed, epoch, process) for seed in (0, 1) for process in range(256) for epoch in range(300)}
    assert len(seeds) == 2 * 256 * 300
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_one_process_has_the_seeds_of_published_records():
    assert [epoch_seed(3, epoch, 0) for epoch in (0, 1, 600)] == [3_000_009, 3_000_010, 3_000_609]
