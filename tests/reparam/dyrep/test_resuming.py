import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from backpass.errors import InputError
from backpass.reparam import DyRep, block_map, reparameterize
from reference.reparam_cases import Residual, images

X, TARGET = images(6, 3, 9, 9), torch.arange(6) % 5


def make() -> tuple[nn.Module, torch.optim.Optimizer, DyRep]:
    """A run whose new parameters enter a group of their own, those of nested blocks another."""
    torch.manual_seed(0)
    model = Residual()
    flat = [p for p in model.parameters() if p.ndim <= 1]
    kernels = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": kernels}, {"params": flat, "weight_decay": 0.0}, {"params": [], "lr": 1e-3}]
    optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=1e-3)
    dyrep = DyRep(model, optimizer, metric="snip", group_of=lambda name, _: 2 if name.count("branches") == 1 else 0)
    return model, optimizer, dyrep


def train(model: nn.Module, optimizer: torch.optim.Optimizer, dyrep: DyRep, grows: str) -> None:
    """Take two steps, then grow the convolution ``grows``."""
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(X), TARGET).backward()
        conv = model.get_submodule(grows)
        gradient = conv.weight.grad.clone()
        conv.weight.grad.mul_(1e6)  # so that its score is the largest
        dyrep.record()
        conv.weight.grad.copy_(gradient)
        optimizer.step()
    assert dyrep.adjust([X]).grown == grows


def test_a_resumed_run_with_a_group_for_branches_equals_one_that_never_stopped() -> None:
    model, optimizer, dyrep = run = make()
    train(*run, "conv1")
    train(*run, "conv1.branches.kxk.conv")  # its bias keeps the group that it entered under a shorter name
    states = copy.deepcopy([part.state_dict() for part in (dyrep, model, optimizer)])
    resumed = make()
    for part, state in zip((resumed[2], resumed[0], resumed[1]), states, strict=True):
        part.load_state_dict(state)
    for each in (run, resumed):
        train(*each, "conv2")
    assert block_map(resumed[0]) == block_map(model)
    sizes, again = ([len(group["params"]) for group in each.param_groups] for each in (optimizer, resumed[1]))
    assert again == sizes
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed[0].state_dict().items())


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state["blocks"].update(nowhere=state["blocks"]["conv2"]), r"an nn.Conv2d at 'nowhere'"),
        (lambda state: state["groups"].update({"fc.bias": 3}), r"one of 3 groups for .* got group 3; build network"),
        (lambda state: state["groups"].pop("fc.bias"), r"got none for fc.bias; build network"),
        (lambda state: state["groups"].update(head=0), r"got head; build network"),
        *((drop(key), f"got one without {key}; pass what") for key in ("blocks", "groups", "metric", "records")),
        (dict.clear, "got one without blocks, groups, records, metric, generator; pass what"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    run = make()
    train(*run, "conv2")
    state = copy.deepcopy(run[2].state_dict())
    spoil(state)
    model, optimizer, dyrep = make()
    held = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(InputError, match=message):
        dyrep.load_state_dict(state)
    assert block_map(model) == {}
    assert optimizer.state_dict() == held
    dyrep.load_state_dict(run[2].state_dict())
    assert list(block_map(model)) == ["conv2"]


def test_a_state_that_fits_in_part_leaves_modules_and_values() -> None:
    model, _, dyrep = make()
    branched = reparameterize(copy.deepcopy(model), "acb")  # moves the bias of conv2 into the statistics of bn2
    state = dyrep.state_dict() | {"blocks": block_map(branched)}
    assert "conv2" in state["blocks"]
    modules = dict(model.named_modules())
    values = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="one of 3 groups for each parameter"):
        dyrep.load_state_dict(state)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_model_that_cannot_be_copied_resumes() -> None:
    def make_normed() -> tuple[nn.Module, torch.optim.Optimizer, DyRep]:
        torch.manual_seed(0)
        model = Residual()
        nn.utils.weight_norm(model.fc)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        return model, optimizer, DyRep(model, optimizer, metric="snip")

    run, resumed = make_normed(), make_normed()
    train(*run, "conv2")
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(resumed[0])
    resumed[2].load_state_dict(run[2].state_dict())
    assert block_map(resumed[0]) == block_map(run[0])
    resumed[0].load_state_dict(run[0].state_dict())
