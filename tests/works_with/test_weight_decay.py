"""A step on gradients of zero: what decoupled weight decay does to a kernel is not scaled, whatever the optimizer."""

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from backpass.errors import InputError
from backpass.sgs import SpatialGradientScaling, alpha_beta_scaling
from backpass.sgs.optimizers import undoes_updates
from backpass.sgs.weight_decay import decay_factor
from works_with.optimizers import Make, of_pytorch_optimizer, of_schedule_free, of_timm, of_torch

G = alpha_beta_scaling(10, 10)
LR, DECAY = 0.1, 0.1
# Those whose step on gradients of zero multiplies all weights with one factor, although the decay is part of the update
# and is scaled with it: it is added to the gradient, or its amount cannot be read from the group.
PART_OF_THE_UPDATE = {
    *("ASGD", "RAdam", "SGD"),
    *("AdamP", "Kron", "Lamb", "Lars", "NvNovoGrad", "RMSpropTF", "SGDP"),
    *("AdamWScheduleFreeReference", "SGDScheduleFree", "SGDScheduleFreeClosure", "SGDScheduleFreeReference"),
    "ScheduleFreeSGD",
    *("APOLLO", "AccSGD", "AdamS", "Adai", "AggMo", "ApolloDQN", "FTRL", "Fromage", "LARS", "NovoGrad", "PID", "QHM"),
    *("SPlus", "SRMM", "ScalableShampoo"),
}


def stepped(make: Make, *, scaled: bool) -> tuple[Tensor, Tensor, Optimizer]:
    """Return a kernel before and after two steps on gradients of zero, and the optimizer."""
    torch.manual_seed(0)
    model = nn.Conv2d(2, 2, 3, bias=False).double()
    start = model.weight.detach().clone()
    optimizer = make(model.parameters(), lr=LR, weight_decay=DECAY)
    if callable(train := getattr(optimizer, "train", None)):
        train()
    if scaled:
        SpatialGradientScaling(model, apply="update", scaling=G).attach(optimizer)
    for _ in range(2):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    return start, model.weight.detach(), optimizer


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-6, atol=1e-9)


FEW: dict[str, list[str] | dict[str, dict[str, Any]]] = {
    "torch.optim": {"AdamW": {}},
    "timm.optim": {
        "Adan": {},
        "AdamWLegacy": {"corrected_weight_decay": True},
        "AdaBelief": {"fixed_decay": True},
        "AdafactorBigVision": {"unscaled_wd": True},
        "Adopt": {"decoupled": True},
        "LaProp": {},
        "Lion": {},
        "Mars": {},
        "SGDW": {},
    },
    "pytorch_optimizer": {"Lion": {}, "Adan": {"weight_decouple": True}, "StableAdamW": {}, "SOAP": {}},
}


@pytest.mark.parametrize(("library", "name"), [(library, name) for library in FEW for name in FEW[library]])
def test_decoupled_decay_is_not_scaled(library: str, name: str) -> None:
    kind = getattr(pytest.importorskip(library), name)
    make = partial(kind, **FEW[library][name])  # type: ignore[call-overload]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm announces the next form of its optimizers
        (start, plain, _), (_, scaled, _) = stepped(make, scaled=False), stepped(make, scaled=True)
    assert not same(start, plain)
    assert same(plain, scaled)


def test_decay_that_the_group_says_is_not_decoupled_is_part_of_the_update() -> None:
    library = pytest.importorskip("pytorch_optimizer")
    parameter = [nn.Parameter(torch.ones(2, 2, 3, 3))]
    for decouple, factor in ((True, 0.95), (False, 1.0)):
        optimizer = library.StableAdamW(parameter, lr=0.5, weight_decay=0.1, weight_decouple=decouple)
        assert decay_factor(optimizer, optimizer.param_groups[0]) == pytest.approx(factor)


def test_adafactor_without_a_learning_rate_and_with_decay_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    parameter = [nn.Parameter(torch.ones(2, 2, 3, 3))]
    optimizer = transformers.Adafactor(parameter)
    assert decay_factor(optimizer, optimizer.param_groups[0]) == 1
    optimizer = transformers.Adafactor(parameter, weight_decay=0.1)
    with pytest.raises(InputError, match=r"groups of Adafactor, .* got lr=None .* pass lr=\.\.\. \(with relative_step"):
        decay_factor(optimizer, optimizer.param_groups[0])
    optimizer = transformers.Adafactor(parameter, lr=0.5, weight_decay=0.1, relative_step=False, scale_parameter=False)
    assert decay_factor(optimizer, optimizer.param_groups[0]) == pytest.approx(0.95)


@pytest.mark.slow
@pytest.mark.parametrize("makes", [of_torch, of_schedule_free, of_timm, of_pytorch_optimizer])
def test_no_optimizer_has_its_decoupled_decay_scaled(makes: Any) -> None:
    mistaken, compared = [], 0
    try:
        of_library = makes()
    except ImportError as error:
        pytest.skip(str(error))
    for name, make in of_library.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                start, plain, optimizer = stepped(make, scaled=False)
            except Exception:
                continue  # without weight decay, for other parameters, for CUDA, or with a closure
            ratio = plain / start
            if not same(ratio, ratio.mean().expand_as(ratio)) or undoes_updates(optimizer):
                continue  # it decays through what it keeps of gradients
            try:
                factor = decay_factor(optimizer, optimizer.param_groups[0])
            except InputError:
                continue  # an Adafactor that finds its learning rate itself
            if factor == 1 and type(optimizer).__name__ in PART_OF_THE_UPDATE:
                continue
            _, scaled, _ = stepped(make, scaled=True)
        compared += 1
        if not same(plain, scaled):
            mistaken.append(name)
    assert mistaken == []
    assert compared or makes is of_schedule_free
