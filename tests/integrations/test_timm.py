"""timm: the loss scaler of its loop, its task, and its checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import backpass
from backpass.errors import InputError
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

pytest.importorskip("timm")
from PIL import Image
from timm.data import create_loader
from timm.models import resume_checkpoint
from timm.utils import CheckpointSaver

from backpass.integrations.timm import ScalingLossScaler


def trained(
    *,
    accumulate: int = 1,
    clip: float | None = None,
    amp: bool = False,
    task: bool = False,
    epochs: int = EPOCHS,
    folder: Path | None = None,
    **options: Any,
) -> Gradients:
    """Train as timm's script does; with a folder, from its checkpoint if there is one, and save one at the end."""
    model = net()
    optimizer, batches = optimizer_of(model), loader()
    steps = recorded(optimizer, model)
    criterion = backpass.PowerGradCrossEntropyLoss(alpha=ALPHA)

    def loss_of(x: Any, y: Any) -> torch.Tensor:
        return criterion(model(x), y)

    if task:
        tasks = pytest.importorskip("timm.task")
        task_ = tasks.ClassificationTask(model, criterion=criterion, verbose=False)

        def loss_of(x: Any, y: Any) -> torch.Tensor:
            return task_(x, y)["loss"]

    sgs = backpass.SpatialGradientScaling(model, **(OPTIONS | options))
    loss_scaler = ScalingLossScaler(sgs, "cpu", enabled=amp)
    start = 0
    if folder is not None and (folder / "last.pth.tar").exists():
        start = resume_checkpoint(model, str(folder / "last.pth.tar"), optimizer, loss_scaler)
    for epoch in range(start, epochs):
        sgs.start_epoch(epoch, batches)
        for number, (x, y) in enumerate(batches):
            loss_scaler(
                loss_of(x, y) / accumulate,
                optimizer,
                clip_grad=clip,
                parameters=model.parameters(),
                need_update=(number + 1) % accumulate == 0,
            )
            if (number + 1) % accumulate == 0:
                optimizer.zero_grad()
    if folder is not None:
        saver = CheckpointSaver(model, optimizer, amp_scaler=loss_scaler, checkpoint_dir=folder, recovery_dir=folder)
        saver.save_checkpoint(epochs - 1)
    return steps


def test_updates_are_scaled_in_the_step() -> None:
    steps = trained(apply="update")
    assert_same(steps, plain(apply="update"))
    with pytest.raises(AssertionError, match="step"):
        assert_same(steps, plain(sgs=False))


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("task", [False, True])
def test_gradients_are_those_of_the_plain_loop(accumulate: int, clip: float | None, amp: bool, task: bool) -> None:
    steps = trained(accumulate=accumulate, clip=clip, amp=amp, task=task)
    assert_same(steps, plain(accumulate=accumulate, clip=clip))
    with pytest.raises(AssertionError, match="step"):
        assert_same(steps, plain(accumulate=accumulate, clip=clip, sgs=False))


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_resumed_run_is_the_one_that_was_never_stopped(tmp_path: Path, epochs: int, amp: bool) -> None:
    first = trained(epochs=epochs, amp=amp, folder=tmp_path, **RESUMED)
    rest = trained(amp=amp, folder=tmp_path, **RESUMED)
    assert_same(first + rest, plain(**RESUMED))


def test_the_state_of_another_loss_scaler_is_refused() -> None:
    loss_scaler = ScalingLossScaler(backpass.SpatialGradientScaling(net()), "cpu")
    with pytest.raises(InputError, match=r"expected a state with sgs and scaler, got scale, growth_factor, .*; load"):
        loss_scaler.load_state_dict(torch.amp.GradScaler("cpu").state_dict())


class Drawn(Dataset[tuple[Any, int]]):
    """Labels each image with its index and a number that its worker draws, as an augmentation does."""

    transform: Any = None  # set by create_loader

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.new("RGB", (8, 8), (index,) * 3)), 1000 * index + int(torch.randint(1000, ()))


@pytest.mark.parametrize("while_reading", [False, True])
@pytest.mark.parametrize("prefetcher", [False, True])
@pytest.mark.parametrize("multi_epochs", [False, True])
def test_training_reads_the_same_batches_with_and_without_an_update(
    while_reading: bool, prefetcher: bool, multi_epochs: bool
) -> None:
    def labels(update: bool) -> list[list[int]]:
        torch.manual_seed(0)
        loader = create_loader(
            Drawn(),
            (3, 8, 8),
            batch_size=2,
            is_training=True,
            no_aug=True,
            device=torch.device("cpu"),
            use_prefetcher=prefetcher,
            use_multi_epochs_loader=multi_epochs,
        )
        sgs = backpass.SpatialGradientScaling(nn.Conv2d(3, 4, 3))
        read: list[list[int]] = []
        for _ in range(2):
            if update and not while_reading:
                sgs.update(loader, batches=2)
            for number, (_, label) in enumerate(loader):
                read.append(label.tolist())
                if update and while_reading and number == 2:
                    sgs.update(loader, batches=2)
        return read

    plain = labels(update=False)
    assert len(plain) == 12
    assert labels(update=True) == plain
