from types import SimpleNamespace

import pytest
import torch

from backpass.errors import InputError
from backpass.training import processes
from backpass.training.processes import epoch_seed
from backpass.training.recipe import Runtime

CPU = torch.device("cpu")


def test_a_mac_trains_on_the_cpu_since_mps_has_no_float64(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    chosen = []
    monkeypatch.setattr(processes, "PartialState", lambda cpu: chosen.append(cpu) or SimpleNamespace(device=CPU))
    assert processes.join(Runtime()) == CPU
    assert chosen == [True]


def test_a_variable_of_accelerate_does_not_divide_the_gradients(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.nn.Parameter(torch.ones(()))
    processes.build_accelerator(Runtime(device="cpu")).backward(3 * weight)
    assert weight.grad == 3


def test_a_precision_that_the_device_lacks_is_named(monkeypatch):
    def lacking(**options):
        raise ValueError("bf16 mixed precision requires PyTorch >= 1.10 and a supported device.")

    monkeypatch.setattr(processes, "Accelerator", lacking)
    monkeypatch.setattr(processes, "is_initialized", lambda: False)
    with pytest.raises(InputError, match=r"a device that computes with precision='bf16', .* choose another precision"):
        processes.build_accelerator(Runtime(device="cpu", precision="bf16"))


def test_no_process_repeats_an_epoch_of_another():
    seeds = {epoch_seed(seed, epoch, process) for seed in (0, 1) for process in range(256) for epoch in range(300)}
    assert len(seeds) == 2 * 256 * 300
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_one_process_has_the_seeds_of_published_records():
    assert [epoch_seed(3, epoch, 0) for epoch in (0, 1, 600)] == [3_000_009, 3_000_010, 3_000_609]
