"""The loop that every integration is compared with: plain PyTorch, with the calls that the method card shows."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

import backpass

BATCH, EPOCHS = 4, 3
OPTIONS: dict[str, Any] = {"k": 2.0, "warmup": 1, "every": 1}
RESUMED = {"every": 5}  # measured at epoch 1 alone: a run resumed at epoch 2 needs the scalings of its checkpoint
ALPHA = 0.3
Gradients = list[dict[str, Tensor]]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 3))


def data() -> tuple[Tensor, Tensor]:
    """Return 32 images whose neighbouring pixels are alike, and their labels."""
    generator = torch.Generator().manual_seed(0)
    images = nn.functional.avg_pool2d(torch.randn(32, 1, 8, 8, generator=generator), 3, stride=1) * 3
    return images, torch.randint(3, (32,), generator=generator)


def loader(batch: int = BATCH) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data()), batch_size=batch)


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def recorded(optimizer: Optimizer, model: nn.Module) -> Gradients:
    """Return a list that receives the gradients of each step, as the optimizer sees them."""
    steps: Gradients = []

    def record(*_: object) -> None:
        steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    optimizer.register_step_post_hook(record)  # where a closure has run, too
    return steps


def plain(
    *,
    accumulate: int = 1,
    clip: float | None = None,
    autocast: bool = False,
    dtype: torch.dtype = torch.float32,
    sgs: bool = True,
    pgt: bool = True,
    measured: Any = None,
    **options: Any,
) -> Gradients:
    """Return the gradients of each step of the plain loop, measured on other batches if given; ``options`` of SGS."""
    model = net().to(dtype)
    optimizer, batches = optimizer_of(model), [(x.to(dtype), y) for x, y in loader()]
    steps = recorded(optimizer, model)
    criterion = backpass.PowerGradCrossEntropyLoss(alpha=ALPHA) if pgt else nn.CrossEntropyLoss()
    method = backpass.SpatialGradientScaling(model, **(OPTIONS | options))
    update = sgs and method.apply == "update"
    for epoch in range(EPOCHS):
        if sgs:
            method.start_epoch(epoch, measured or batches)
        for number, (x, y) in enumerate(batches):
            with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                loss = criterion(model(x), y) / accumulate
            loss.backward()
            if (number + 1) % accumulate:
                continue
            if sgs and not update:
                method.scale_gradients()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            with method.scaled_update() if update else nullcontext():
                optimizer.step()
            optimizer.zero_grad()
    return steps


def assert_same(ours: Gradients, expected: Gradients, *, autocast: bool = False) -> None:
    """Check the gradients of all steps; under autocast to bfloat16 to its precision, which adds up over the steps."""
    assert len(ours) == len(expected)
    rtol, atol = (5e-2, 2e-3) if autocast else (1e-5, 1e-6)
    for step, (mine, other) in enumerate(zip(ours, expected, strict=True)):
        names = {name.removeprefix("model."): grad for name, grad in mine.items()}
        torch.testing.assert_close(
            names, other, rtol=rtol, atol=atol, msg=lambda text, step=step: f"step {step}: {text}"
        )
