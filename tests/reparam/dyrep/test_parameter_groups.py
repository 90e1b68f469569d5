import copy
import pickle

import pytest
import torch
from torch import nn

from backpass.errors import InputError
from backpass.reparam.dyrep.parameter_groups import ParameterGroups
from reference.reparam_cases import Residual, images


def names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    known = {id(p): name for name, p in model.named_parameters()}
    return [[known.get(id(p), "?") for p in group["params"]] for group in optimizer.param_groups]


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(images(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()


def test_parameters_come_and_go_and_the_others_keep_their_state() -> None:
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    groups = ParameterGroups(model, optimizer)
    step(model, optimizer)
    old, group = model.conv1.weight, optimizer.param_groups[0]
    states = {p: dict(state) for p, state in optimizer.state.items()}
    model.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    groups.update()
    assert optimizer.param_groups[0] is group
    assert names(model, optimizer) == [sorted(dict(model.named_parameters()))]
    assert old not in optimizer.state
    assert model.conv1.weight not in optimizer.state
    assert set(optimizer.state) == set(states) - {old}
    assert all(optimizer.state[p]["momentum_buffer"] is states[p]["momentum_buffer"] for p in optimizer.state)
    step(model, optimizer)
    scheduler.step()
    assert model.conv1.weight in optimizer.state
    assert group["lr"] == pytest.approx(0.001)


def test_new_parameters_enter_the_group_of_their_kind() -> None:
    model = Residual()
    flat = [p for p in model.parameters() if p.ndim <= 1]
    kernels = [p for p in model.parameters() if p.ndim > 1]
    extra = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([{"params": flat, "weight_decay": 0.0}, {"params": [*kernels, extra]}], lr=0.1)
    groups = ParameterGroups(model, optimizer)
    model.conv1 = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8))
    groups.update()
    first, second = names(model, optimizer)
    assert first == sorted(name for name, p in model.named_parameters() if p.ndim <= 1)
    assert second == [*sorted(name for name, p in model.named_parameters() if p.ndim > 1), "?"]
    assert optimizer.param_groups[1]["params"][-1] is extra


def test_groups_by_another_rule_need_it_said() -> None:
    model = Residual()
    late = [*model.fc.parameters(), *model.bn2.parameters()]
    early = [p for p in model.parameters() if id(p) not in set(map(id, late))]
    optimizer = torch.optim.SGD([{"params": early}, {"params": late, "lr": 1.0}], lr=0.1)
    with pytest.raises(InputError, match=r"kernels in the groups \[0, 1\] and 1-D parameters in \[0, 1\].*group_of"):
        ParameterGroups(model, optimizer)
    groups = ParameterGroups(model, optimizer, lambda name, parameter: int(name.startswith("fc")))
    model.fc = nn.Linear(8, 5)
    groups.update()
    assert names(model, optimizer)[1] == ["bn2.bias", "bn2.weight", "fc.bias", "fc.weight"]


def test_a_kind_that_was_not_there_enters_the_group_of_the_other() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    groups = ParameterGroups(model, optimizer)
    model[0] = nn.Conv2d(3, 4, 3)
    groups.update()
    assert names(model, optimizer) == [["0.bias", "0.weight", "1.weight"]]


@pytest.mark.parametrize("chosen", [2, -1, None])
def test_a_group_that_is_not_there_is_refused_and_nothing_changes(chosen: object) -> None:
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    groups = ParameterGroups(model, optimizer, lambda name, parameter: chosen)
    held = list(optimizer.param_groups[0]["params"])
    model.fc = nn.Linear(8, 5)
    with pytest.raises(InputError, match=rf"the index of one of 1 parameter groups, got {chosen} for fc.bias"):
        groups.update()
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], held, strict=True))


def test_frozen_parameters_outside_the_optimizer_stay_outside() -> None:
    model = Residual()
    model.conv1.weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ParameterGroups(model, optimizer).update()
    assert "conv1.weight" not in names(model, optimizer)[0]


def test_an_optimizer_of_another_model_is_refused() -> None:
    optimizer = torch.optim.SGD(Residual().parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"got one without conv1.weight \(12 such parameters\)"):
        ParameterGroups(Residual(), optimizer)


def test_parameter_names_kept_by_the_optimizer_follow() -> None:
    model = Residual()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    groups = ParameterGroups(model, optimizer)
    model.fc = nn.Linear(8, 5, bias=False)
    groups.update()
    assert optimizer.param_groups[0].get("param_names", sorted(dict(model.named_parameters()))) == sorted(
        dict(model.named_parameters())
    )


def test_the_state_of_a_wrapped_optimizer_is_that_of_the_inner_one() -> None:
    lookahead = pytest.importorskip("timm.optim.lookahead").Lookahead
    model = Residual()
    inner = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    wrapped = lookahead(inner)
    groups = ParameterGroups(model, wrapped)
    step(model, wrapped)
    old, model.conv1 = model.conv1.weight, nn.Conv2d(3, 8, 3, stride=2, padding=1)
    groups.update()
    assert old not in inner.state
    wrapped.state_dict()


def test_a_copy_knows_its_own_parameters() -> None:
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model, optimizer, groups = copy.deepcopy((model, optimizer, ParameterGroups(model, optimizer)))
    model.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    groups.update()
    assert names(model, optimizer) == [sorted(dict(model.named_parameters()))]
    pickle.dumps(groups)
