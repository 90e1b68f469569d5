"""The training loop of the exam, drawn once, and the comparison that every condition makes with it."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from battery.rows import Criterion, Method, Row

Placed = TypeVar("Placed", Tensor, nn.Module)

CLASSES = 5
MAX_NORM = 0.1
MOMENTUM = partial(torch.optim.SGD, lr=0.5, momentum=0.9, weight_decay=1e-2)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]
TOLERANCES = {
    torch.float64: (1e-7, 1e-9),
    torch.float32: (1e-4, 1e-6),
    torch.bfloat16: (3e-2, 1e-3),
    torch.float16: (2e-3, 2e-4),
}


def net() -> nn.Sequential:
    """Two convolutions, one of them rectangular, batch normalisation, and a head."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, (3, 1), groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 6 * 8, CLASSES),
    )


def batch(seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 8, 8) whose neighbouring pixels are alike, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size, 3, 10, 10, generator=generator)
    images = torch.nn.functional.avg_pool2d(noise, 3, stride=1) * 3
    return images, torch.randint(CLASSES, (size,), generator=generator)


def same(module: nn.Module) -> nn.Module:
    """Return the module itself."""
    return module


@dataclass(frozen=True)
class Outcome:
    """Where a run ended: the model's state, and the gradients of the last step as the optimizer saw them."""

    model: nn.Module
    state: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True)
class Loop:
    """The setting of a short training run; :meth:`run` is the loop.

    Attributes:
        build: makes the plain model.
        draw: makes the batch of a seed.
        wrap: what the user does to the model before anything else; the reference runs go without.
        wrap_criterion: the same for the loss.
        optimizer: makes the optimizer from parameters.
        dtype: of model and images.
        images: dtype of the images, where autocast casts them.
        device: of both.
        steps: optimizer steps, each on a batch of its own.
        micro_batches: parts that a batch is accumulated over.
        autocast: dtype of autocast, if any.
        loss_scale: initial scale of a GradScaler, if any.
        unscale_first: gradients are unscaled before the method sees them.
        clip: where the norm of all gradients is clipped: before or after the method.
        how: the method is called in the loop, attached to the optimizer, or called inside a closure.
        first_batch: the model runs once before anything is measured, as lazy layers need it.
        set_to_none: how gradients are cleared.
        memory_format: of model and images.
    """

    build: Callable[[], nn.Module] = net
    draw: Callable[[int], tuple[Tensor, Tensor]] = batch
    wrap: Callable[[nn.Module], nn.Module] = same
    wrap_criterion: Callable[[Criterion], Criterion] | None = None
    optimizer: Callable[..., Optimizer] = MOMENTUM
    dtype: torch.dtype = torch.float64
    images: torch.dtype | None = None
    device: str = "cpu"
    steps: int = 2
    micro_batches: int = 1
    autocast: torch.dtype | None = None
    loss_scale: float | None = None
    unscale_first: bool = True
    clip: Literal["before", "after"] | None = None
    how: Literal["called", "attached", "in a closure"] = "called"
    first_batch: bool = False
    set_to_none: bool = True
    memory_format: torch.memory_format = torch.contiguous_format

    def but(self, **changes: Any) -> "Loop":
        """Return this setting with some fields changed."""
        return replace(self, **changes)

    def plainly(self) -> "Loop":
        """Return the setting of the reference: no wrapper, nothing to cast, the method called in the loop, unscaled."""
        how = "called" if self.how == "attached" else self.how
        return self.but(wrap=same, wrap_criterion=None, how=how, unscale_first=True, images=None)

    def batch(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return a batch as this setting has it."""
        x, y = self.draw(seed)
        y = y.to(self.device, self.dtype if y.is_floating_point() else y.dtype)
        return self._laid_out(x.to(self.device, self.images or self.dtype)), y

    def new_model(self) -> nn.Module:
        """Return the plain model, the same each time."""
        torch.manual_seed(0)
        return self._laid_out(self.build().to(self.device, self.dtype))

    def _laid_out(self, placed: Placed) -> Placed:
        # Lazy layers cannot be asked for a layout, so nothing is asked where it is the default.
        plain = self.memory_format == torch.contiguous_format
        return placed if plain else placed.to(memory_format=self.memory_format)

    def run(self, criterion: Criterion, make: Callable[[nn.Module], Method]) -> Outcome:
        """Train; return where it ended."""
        inner = self.new_model()
        model = self.wrap(inner)
        criterion = self.wrap_criterion(criterion) if self.wrap_criterion else criterion
        method = make(model)
        if self.first_batch:
            model(self.batch(101)[0])
        method.measure([self.batch(100)[0]])
        optimizer = self.optimizer(model.parameters())
        scaler = torch.amp.GradScaler(
            self.device, init_scale=self.loss_scale or 1.0, enabled=self.loss_scale is not None
        )
        if self.how == "attached":
            method.attach(optimizer)

        def backward(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad(set_to_none=self.set_to_none)
            total = torch.zeros((), device=self.device)
            for part_x, part_y in zip(x.chunk(self.micro_batches), y.chunk(self.micro_batches), strict=True):
                with torch.autocast(self.device, self.autocast) if self.autocast else nullcontext():
                    loss = criterion(model(part_x), part_y) / self.micro_batches
                scaler.scale(loss).backward()
                total += loss.detach()
            return total

        def closure(x: Tensor, y: Tensor) -> float:
            loss = backward(x, y)
            method.scale()
            return loss.item()

        for step in range(self.steps):
            x, y = self.batch(step)
            if self.how == "in a closure":
                with method.around_step(optimizer):
                    optimizer.step(partial(closure, x, y))
                continue
            backward(x, y)
            if self.unscale_first:
                scaler.unscale_(optimizer)
            if self.clip == "before":
                nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            if self.how == "called":
                method.scale()
            if self.clip == "after":
                nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            with nullcontext() if self.how == "attached" else method.around_step(optimizer):
                scaler.step(optimizer)
            scaler.update()
        gradients = {name: p.grad.clone() for name, p in inner.named_parameters() if p.grad is not None}
        return Outcome(inner, inner.state_dict(), gradients)

    def assert_same(self, outcome: Outcome, expected: Outcome) -> None:
        """Check that two runs ended in the same place, to the precision of the setting."""
        rtol, atol = TOLERANCES[self.autocast or self.dtype]
        for mine, other in ((outcome.state, expected.state), (outcome.gradients, expected.gradients)):
            torch.testing.assert_close(dict(mine), dict(other), rtol=rtol, atol=atol)

    def assert_differs(self, outcome: Outcome, other: Outcome) -> None:
        """Check that the same comparison can fail."""
        with pytest.raises(AssertionError):
            self.assert_same(outcome, other)


def examine(row: Row, loop: Loop) -> Outcome:
    """Train with the row's method; check that it does what its definition says, and that each of its parts matters."""
    outcome = loop.run(row.loss.ours, row.ours)
    plainly = loop.plainly()
    loop.assert_same(outcome, plainly.run(row.loss.definition, row.definition))
    for control in row.without_one_part():
        loop.assert_differs(outcome, plainly.run(control.loss.ours, control.ours))
    return outcome
