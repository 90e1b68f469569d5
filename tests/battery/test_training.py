"""Everything else that happens between backward and step: accumulation, clipping, optimizers, closures."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from backpass.errors import NoEffectWarning
from battery.loop import DEVICES, MAX_NORM, Loop, batch, examine, net
from battery.rows import Refusing, Row


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_accumulation_over_micro_batches(row: Row, micro_batches: int) -> None:
    loop = Loop(build=lambda: net().eval())  # batch statistics would depend on the parts
    parts = examine(row, loop.but(micro_batches=micro_batches))
    loop.assert_same(parts, loop.run(row.loss.ours, row.ours))


def test_gradients_zeroed_in_place(row: Row) -> None:
    loop = Loop(steps=3)
    outcome = examine(row, loop.but(set_to_none=False))
    loop.assert_same(outcome, loop.run(row.loss.ours, row.ours))


@pytest.mark.parametrize("clip", ["before", "after"])
def test_norm_clipping(row: Row, clip: Any) -> None:
    outcome = examine(row, Loop(clip=clip))
    if clip == "after":
        norm = torch.stack([g.norm() for g in outcome.gradients.values()]).norm()
        assert norm <= MAX_NORM + 1e-6
    Loop().assert_differs(outcome, Loop().run(row.loss.ours, row.ours))


def test_attached_equals_called(row: Row) -> None:
    outcome = examine(row, Loop(how="attached", steps=3))
    Loop().assert_same(outcome, Loop(steps=3).run(row.loss.ours, row.ours))


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.5, momentum=0.9, nesterov=True),
    "adamw": partial(torch.optim.AdamW, lr=0.05),
    "adagrad": partial(torch.optim.Adagrad, lr=0.05),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.05),
}
FORMS = [  # those that torch has
    ("sgd", "foreach"),
    ("sgd", "fused"),
    ("adamw", "foreach"),
    ("adamw", "fused"),
    ("adamw", "capturable"),
    ("adagrad", "foreach"),
    ("rmsprop", "foreach"),
    ("rmsprop", "capturable"),
]


@pytest.mark.parametrize(("name", "form"), FORMS, ids=map("_".join, FORMS))
@pytest.mark.parametrize("device", DEVICES)
def test_optimizer(row: Row, name: str, form: str, device: str) -> None:
    if form == "capturable" and device == "cpu":
        pytest.skip("torch refuses capturable=True on the CPU")
    loop = Loop(device=device, optimizer=partial(OPTIMIZERS[name], **{form: True}))
    outcome = examine(row, loop)
    cancelled = name != "sgd" and row.cancels
    with pytest.warns(NoEffectWarning, match="apply='update'") if cancelled else nullcontext():
        attached = loop.but(how="attached").run(row.loss.ours, row.ours)
    loop.assert_same(outcome, attached)


class SharpnessAware(Optimizer):
    """SAM: the gradient of the second closure, taken a step up the first, moves the weights from where they were."""

    def __init__(self, params: Any, lr: float, rho: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def step(self, closure: Callable[[], float]) -> float:
        (group,) = self.param_groups
        start = [p.detach().clone() for p in group["params"]]
        with torch.enable_grad():
            loss = closure()
        norm = torch.stack([p.grad.norm() for p in group["params"]]).norm()
        for p in group["params"]:
            p.add_(p.grad, alpha=(group["rho"] / norm).item())
        with torch.enable_grad():
            closure()
        for p, before in zip(group["params"], start, strict=True):
            p.copy_(before - group["lr"] * p.grad)
        return loss


CLOSURES = {
    "lbfgs": partial(torch.optim.LBFGS, lr=0.1, max_iter=3),
    "lbfgs_line_search": partial(torch.optim.LBFGS, lr=0.1, max_iter=3, line_search_fn="strong_wolfe"),
    "sam": partial(SharpnessAware, lr=0.5),
}


@pytest.mark.parametrize("name", list(CLOSURES))
def test_called_inside_the_closure_of(row: Row, name: str) -> None:
    examine(row, Loop(optimizer=CLOSURES[name], how="in a closure"))


@pytest.mark.parametrize("name", ["lbfgs", "sam"])
def test_attached_to_an_optimizer_with_a_closure(row: Row, name: str, refusing: Refusing) -> None:
    x, y = batch(0)

    def steps(attached: bool) -> dict[str, Tensor]:
        model = Loop(dtype=torch.float32).new_model()
        method = row.ours(model)
        method.measure([x])
        optimizer = CLOSURES[name](model.parameters())
        if attached:
            method.attach(optimizer)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = row.loss.ours(model(x), y)
            loss.backward()
            if not attached:
                method.scale()
            return loss

        with method.around_step(optimizer) if not attached else nullcontext():
            optimizer.step(closure)
        return model.state_dict()

    with refusing(row, "attached, with a closure"):
        torch.testing.assert_close(steps(attached=True), steps(attached=False))


def test_attached_to_an_optimizer_of_another_model_warns(row: Row) -> None:
    method = row.ours(net())
    optimizer = torch.optim.SGD(net().parameters(), lr=0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method.attach(optimizer)
    assert [warning.category for warning in caught] == [NoEffectWarning] * len(row.transforms)
    assert all("SGD holds no" in str(warning.message) for warning in caught)


def test_attached_to_two_optimizers_that_share_the_model(row: Row) -> None:
    loop = Loop(steps=1, optimizer=partial(torch.optim.SGD, lr=0.5))
    model = loop.new_model()
    x, y = loop.batch(0)
    method = row.ours(model)
    method.measure([loop.batch(100)[0]])
    optimizers = [loop.optimizer(part.parameters()) for part in (model[:2], model[2:])]
    for optimizer in optimizers:
        method.attach(optimizer)
    row.loss.ours(model(x), y).backward()
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), loop.run(row.loss.ours, row.ours).state)
