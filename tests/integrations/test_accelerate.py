"""Accelerate: the README's pattern gives the gradients of the plain loop, step by step."""

from pathlib import Path
from typing import Any

import pytest

import backpass
from integrations.plain_loop import (
    ALPHA,
    EPOCHS,
    OPTIONS,
    RESUMED,
    Gradients,
    assert_same,
    loader,
    net,
    optimizer_of,
    plain,
    recorded,
)

pytest.importorskip("accelerate")
from accelerate import Accelerator
from accelerate.state import AcceleratorState


def trained(
    *,
    accumulate: int = 1,
    clip: float | None = None,
    autocast: bool = False,
    epochs: range = range(EPOCHS),
    saved: Path | None = None,
    **options: Any,
) -> Gradients:
    """Train the epochs; with ``saved``, from the checkpoint there if there is one, and save one at the end."""
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=accumulate, mixed_precision="bf16" if autocast else "no"
    )
    model = net()
    optimizer = optimizer_of(model)
    steps = recorded(optimizer, model)
    criterion = backpass.PowerGradCrossEntropyLoss(alpha=ALPHA)
    sgs = backpass.SpatialGradientScaling(model, **(OPTIONS | options))
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader())
    accelerator.register_for_checkpointing(sgs)
    if saved is not None and saved.exists():
        accelerator.load_state(str(saved))
    for epoch in epochs:
        sgs.start_epoch(epoch, batches)
        for x, y in batches:
            with accelerator.accumulate(model):
                accelerator.backward(criterion(model(x), y))
                if accelerator.sync_gradients:
                    sgs.scale_gradients()
                    if clip is not None:
                        accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    if saved is not None:
        accelerator.save_state(str(saved))
    return steps


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_those_of_the_plain_loop(accumulate: int, clip: float | None, autocast: bool) -> None:
    steps = trained(accumulate=accumulate, clip=clip, autocast=autocast)
    assert_same(steps, plain(accumulate=accumulate, clip=clip, autocast=autocast), autocast=autocast)
    with pytest.raises(AssertionError, match="step"):
        assert_same(steps, plain(accumulate=accumulate, clip=clip, autocast=autocast, sgs=False), autocast=autocast)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_resumed_run_is_the_one_that_was_never_stopped(tmp_path: Path, epochs: int) -> None:
    first = trained(epochs=range(epochs), saved=tmp_path / "saved", **RESUMED)
    AcceleratorState._reset_state(reset_partial_state=True)
    rest = trained(epochs=range(epochs, EPOCHS), saved=tmp_path / "saved", **RESUMED)
    assert_same(first + rest, plain(**RESUMED))


@pytest.mark.parametrize("batches", [2, None])
def test_an_update_while_a_loader_is_read_leaves_when_gradients_are_synchronised(batches: int | None) -> None:
    def synchronised(update: bool) -> list[bool]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
        state = accelerator.gradient_state
        sgs = backpass.SpatialGradientScaling(net(), **OPTIONS)
        training, validation = accelerator.prepare(loader(6), loader(16))
        steps: list[bool] = []
        for number, _ in enumerate(training):
            if update and number == 2:
                for _ in validation:
                    sgs.update(training, batches=batches)
                    assert state.active_dataloader is validation
            assert state.active_dataloader is training
            assert state.remainder == 32 % 6
            with accelerator.accumulate():
                steps.append(accelerator.sync_gradients)
        assert not state.in_dataloader
        return steps

    assert synchronised(update=False) == [False, False, False, True, False, True]
    assert synchronised(update=True) == [False, False, False, True, False, True]
