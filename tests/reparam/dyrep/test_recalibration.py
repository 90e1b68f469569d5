from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from backpass.errors import InputError
from backpass.reparam.dyrep.recalibration import recalibrate
from reference.reparam_cases import Residual, images, randomise


def test_statistics_are_plain_averages_over_the_batches() -> None:
    model = randomise(Residual())
    batches = [images(4, 3, 8, 8, seed=seed) for seed in range(3)]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    recalibrate(model, [model.bn1], batches)
    maps = [model.conv1(batch) for batch in batches]
    torch.testing.assert_close(model.bn1.running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0))
    torch.testing.assert_close(model.bn1.running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0))
    assert model.bn1.momentum == 0.1
    assert model.training
    assert model.bn1.training
    others = [name for name in before if not name.startswith("bn1.")]
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers() if name in others)


def test_the_limit_bounds_the_batches_and_tuples_start_with_the_input() -> None:
    model = Residual().eval()
    drawn = []
    recalibrate(model, [model.bn1], (drawn.append(i) or (images(2, 3, 8, 8), i) for i in range(9)), limit=2)
    assert model.bn1.num_batches_tracked == 2
    assert len(drawn) == 2
    assert not model.bn1.training


@pytest.mark.parametrize("fails", [False, True])
def test_reading_a_loader_leaves_no_trace(fails: bool) -> None:
    def forward(batch: Tensor) -> Tensor:
        if fails:
            raise InputError("cannot run this batch")
        return model(batch)

    def epoch(measure: bool) -> list[Tensor]:
        torch.manual_seed(0)
        loader = DataLoader(images(12, 3, 8, 8), batch_size=2, shuffle=True)
        if measure:
            with pytest.raises(InputError, match="cannot run") if fails else nullcontext():
                recalibrate(model, [model.bn1], loader, limit=2, forward=forward)
        return [torch.rand(2), *loader]

    model = Residual()
    assert all(torch.equal(a, b) for a, b in zip(epoch(False), epoch(True), strict=True))


@pytest.mark.parametrize("limit", [1, 4])
def test_an_accelerate_loader_is_left_as_if_it_had_not_been_read(limit: int) -> None:
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, loader = Residual(), accelerator.prepare(DataLoader(images(8, 3, 8, 8), batch_size=2))
    recalibrate(model, [model.bn1], loader, limit=limit)
    assert not accelerator.gradient_state.in_dataloader


def test_a_tensor_is_no_list_of_batches() -> None:
    model = Residual()
    with pytest.raises(InputError, match=r"expected an iterable of batches, got one tensor of .*; pass \[batch\]"):
        recalibrate(model, [model.bn1], images(2, 3, 8, 8))


def test_other_batches_need_a_forward() -> None:
    model = Residual()
    batch = {"pixels": images(2, 3, 8, 8)}
    with pytest.raises(InputError, match=r"that starts with one, got dict with keys 'pixels'; pass forward="):
        recalibrate(model, [model.bn1], [batch])
    assert model.bn1.momentum == 0.1
    assert model.training
    recalibrate(model, [model.bn1], [batch], forward=lambda batch: model(batch["pixels"]))
    assert model.bn1.num_batches_tracked == 1


def test_normalisations_that_nothing_reaches_are_an_error() -> None:
    model = Residual()
    with pytest.raises(InputError, match=r"all 1 normalisations .* got some that reach 0; pass at least one batch"):
        recalibrate(model, [model.bn1], [])
    with pytest.raises(InputError, match=r"all 2 normalisations .* reach 1;"):
        recalibrate(model, [model.bn1, nn.BatchNorm2d(3)], [images(2, 3, 8, 8)])
