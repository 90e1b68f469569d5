"""timm: the loss scaler of its loop, and its task."""

from typing import Any

import pytest
import torch

import backpass
from integrations.plain_loop import ALPHA, EPOCHS, OPTIONS, assert_same, loader, net, optimizer_of, plain, recorded

pytest.importorskip("timm")
from backpass.integrations.timm import ScalingLossScaler


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("task", [False, True])
def test_gradients_are_those_of_the_plain_loop(accumulate: int, clip: float | None, amp: bool, task: bool) -> None:
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

    sgs = backpass.SpatialGradientScaling(model, **OPTIONS)
    loss_scaler = ScalingLossScaler(sgs, "cpu", enabled=amp)
    for epoch in range(EPOCHS):
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
    assert_same(steps, plain(accumulate=accumulate, clip=clip))
    with pytest.raises(AssertionError, match="step"):
        assert_same(steps, plain(accumulate=accumulate, clip=clip, sgs=False))
