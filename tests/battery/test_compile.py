"""Compiled equals eager, measuring included, and nothing of ours breaks a graph: ``fullgraph=True`` throughout."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from battery.loop import DEVICES, Loop, examine, net
from battery.rows import Criterion, Row

# Dynamo looks at .grad of whatever a loss is given, whether it is a leaf or not.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

compiled = partial(torch.compile, fullgraph=True)


class Conv(nn.Conv2d):
    """A layer with a forward of its own: torch 2.6 compiles no forward of torch's own in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Net(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def own_net() -> nn.Module:
    return Net(Conv(3, 4, 3, padding=1, bias=False), *list(net())[1:])


def compiled_loss(criterion: Criterion, backend: str) -> Criterion:
    def loss(x: Tensor, y: Tensor) -> Tensor:  # torch 2.6 cannot compile cross_entropy itself
        return criterion(x, y)

    return compiled(loss, backend=backend)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def wrapped(model: nn.Module, **options: Any) -> nn.Module:
    compiled_model: nn.Module = compiled(model, **options)
    return compiled_model


def in_place(model: nn.Module, **options: Any) -> nn.Module:
    model.compile(fullgraph=True, **options)
    return model


def one_layer(model: nn.Module, **options: Any) -> nn.Module:
    model.get_submodule("0").compile(fullgraph=True, **options)
    return model


@pytest.mark.parametrize("how", [wrapped, in_place, one_layer], ids=lambda how: how.__name__)
def test_compiled_model(row: Row, how: Callable[..., nn.Module]) -> None:
    graphs: list[object] = []

    def counting(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    outcome = examine(row, Loop(build=own_net, wrap=partial(how, backend=counting), steps=3))
    assert len(graphs) == 1
    assert "0.weight" in dict(outcome.model.named_parameters())


def test_compiled_loss(row: Row) -> None:
    examine(row, Loop(wrap_criterion=partial(compiled_loss, backend="eager")))


def test_compiled_model_and_loss_through_autograd_tracing(row: Row) -> None:
    backend = "aot_eager"
    examine(row, Loop(wrap=partial(compiled, backend=backend), wrap_criterion=partial(compiled_loss, backend=backend)))


def test_measuring_again_compiles_nothing_anew(row: Row) -> None:
    loop = Loop()
    model = wrapped(loop.new_model(), backend="eager")
    x, y = loop.batch(0)
    method = row.ours(model)
    row.loss.ours(model(x), y).backward()
    method.scale()
    with torch.compiler.set_stance("fail_on_recompile"):
        method.measure([x[:4]])
        model.zero_grad()
        row.loss.ours(model(x), y).backward()
        with pytest.raises(RuntimeError, match="recompile"):
            model(x[:4])


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_compiled_by_inductor(row: Row, device: str) -> None:
    examine(row, Loop(device=device, wrap=compiled, wrap_criterion=partial(compiled_loss, backend="inductor")))
