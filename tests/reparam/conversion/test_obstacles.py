import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from backpass.reparam import (
    ACBlock,
    plan_conversion,
    reparameterize,
)
from reference.reparam_cases import Residual, images


def hooked(register: Callable[[nn.Module], object]) -> nn.Module:
    model = Residual()
    register(model)
    return model


@pytest.mark.parametrize(
    ("register", "reason"),
    [
        (lambda m: m.conv1.register_forward_hook(print), "it has a forward hook, which a block would not run"),
        (lambda m: m.conv1.register_forward_pre_hook(print), "it has a forward pre-hook, which"),
        (lambda m: m.conv1.register_full_backward_hook(print), "it has a backward hook, which"),
        (lambda m: m.conv1.register_full_backward_pre_hook(print), "it has a backward pre-hook, which"),
        (lambda m: m.conv1.register_state_dict_post_hook(lambda *_: None), "it has a state-dict hook, which"),
        (lambda m: m.bn1.register_forward_hook(print), "its normalisation does not fit: it has a forward hook"),
        (lambda m: setattr(m.conv1, "forward", m.conv1._conv_forward), "its forward function was replaced"),
        (lambda m: setattr(m, "pairs", [("a", m.conv1)]), "it is also held outside the registered modules, in pairs"),
        (lambda m: setattr(m, "layers", [m.conv1]), "it is also held outside the registered modules, in layers"),
        (lambda m: setattr(m.fc, "norms", {"a": m.bn1}), "not fit: it is also held outside .*, in fc.norms"),
    ],
)
def test_layers_that_something_else_is_tied_to_stay_and_the_plan_says_why(register, reason: str) -> None:
    model = hooked(register)
    plan = plan_conversion(model, "acb")
    assert plan.converted == {"conv2": "bn2"}
    assert re.search(rf"1 skipped: .*{reason}.*\n    conv1", str(plan))
    assert type(reparameterize(model, "acb", inplace=True).conv1) is nn.Conv2d


def test_hooks_still_run_after_the_conversion() -> None:
    seen = []
    model = hooked(lambda m: m.conv2.register_forward_hook(lambda module, x, y: seen.append(y.shape)))
    reparameterize(model, "acb")(images(2, 3, 8, 8))
    assert seen == [(2, 8, 4, 4)]


def test_convolutions_that_share_a_parameter_stay_tied() -> None:
    model = nn.Sequential(
        *(layer for _ in range(3) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()))
    )
    model[3].weight = model[0].weight
    converted = reparameterize(model, "acb")
    assert plan_conversion(model, "acb").skipped == {
        "0": "it shares its weight with 3",
        "3": "it shares its weight with 0",
    }
    assert converted[3].weight is converted[0].weight
    assert type(converted[6]) is ACBlock
    model[3].weight = nn.Parameter(model[3].weight.clone())
    model[1].bias = model[7].bias
    assert plan_conversion(model, "acb").skipped == {
        "0": "its normalisation does not fit: it shares its bias with 7",
        "6": "its normalisation does not fit: it shares its bias with 1",
    }


def test_a_forward_pass_that_reads_a_kernel_still_runs() -> None:
    class Reading(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.conv1.weight.square().mean()

    for probe in (None, images(1, 3, 8, 8)):
        model = reparameterize(Reading(), "acb", probe=probe)
        model(images(2, 3, 8, 8)).sum().backward()
        assert type(model.conv1) is nn.Conv2d
        assert type(model.conv2) is ACBlock
