import re

import pytest
from torch import nn

from backpass.errors import InputError, NoEffectWarning
from backpass.reparam import (
    Conversion,
    ReparamBlock,
    plan_conversion,
    reparameterize,
)
from reference.reparam_cases import Residual


def test_the_report_says_what_becomes_of_each_convolution() -> None:
    plan = plan_conversion(Residual(), "acb", include=["conv*"])
    assert plan.converted == {"conv1": "bn1", "conv2": "bn2"}
    assert plan.skipped == {"shortcut.0": "it is not included"}
    assert str(plan).splitlines() == [
        "acb: 2 of 3 convolutions become blocks",
        "    conv1+bn1, conv2+bn2",
        "1 skipped: it is not included",
        "    shortcut.0",
    ]


def test_the_report_groups_the_skipped_by_reason_and_breaks_lines_between_names() -> None:
    plan = Conversion("acb", {}, {f"part{i}.conv": f"reason {i % 2}" for i in range(40)})
    first, *lines = str(plan).splitlines()
    assert first == "acb: 0 of 40 convolutions become blocks"
    assert [line for line in lines if not line.startswith("    ")] == ["20 skipped: reason 0", "20 skipped: reason 1"]
    assert max(map(len, lines)) <= 120
    odd = lines[lines.index("20 skipped: reason 1") + 1 :]
    assert len(odd) > 1
    assert " ".join(odd).replace(",", "").split() == [f"part{i}.conv" for i in range(1, 40, 2)]


class Odd(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("conv", "norm", "reason"),
    [
        (nn.Conv2d(3, 4, 7), nn.BatchNorm2d(4), r"square with 2 to 6 taps a side, got (7, 7)"),
        (nn.Conv2d(3, 4, (3, 1)), nn.BatchNorm2d(4), r"square with 2 to 6 taps a side, got (3, 1)"),
        (Odd(3, 4, 3), nn.BatchNorm2d(4), "it is a Odd, which may do more than nn.Conv2d"),
        (
            nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
            nn.BatchNorm2d(4),
            "it is a ParametrizedConv2d, which may do more than nn.Conv2d",
        ),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), "its normalisation does not fit: it has no gamma"),
        (nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), "its output goes to 1, not to a batch normalisation"),
        (nn.Conv2d(3, 4, 3), nn.ReLU(), "its output goes to 1, not to a batch normalisation"),
        (nn.Conv2d(3, 4, 4, padding="same"), nn.BatchNorm2d(4), "pads one side more than the other"),
        (nn.Conv2d(3, 4, 4), nn.BatchNorm2d(4), "square, odd and above 1, got (4, 4)"),
    ],
)
def test_unsuitable_layers_stay_and_a_model_without_others_warns(conv: nn.Module, norm: nn.Module, reason: str) -> None:
    model = nn.Sequential(conv, norm)
    warning = f"acb converts no layer of Sequential:\nacb: 0 of 1 .*\n1 skipped: .*{re.escape(reason)}.*\n    0$"
    with pytest.warns(NoEffectWarning, match=warning):
        converted = reparameterize(model, "acb", inplace=True)
    assert converted is model
    assert model[0] is conv


def test_frozen_layers_stay_and_nothing_new_trains() -> None:
    model = Residual()
    for layer in (model.conv1, model.bn1, model.bn2):
        layer.requires_grad_(False)
    plan = plan_conversion(model, "acb")
    assert plan.skipped["conv1"] == "it is frozen (requires_grad=False)"
    assert plan.skipped["conv2"] == "its normalisation does not fit: it is frozen (requires_grad=False)"
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with pytest.warns(NoEffectWarning, match="acb converts no layer"):
        converted = reparameterize(model, "acb")
    assert [name for name, parameter in converted.named_parameters() if parameter.requires_grad] == trained
    model.requires_grad_()
    assert list(plan_conversion(model, "acb").converted) == ["conv1", "conv2"]


def test_normalisations_kept_in_eval_mode_stay() -> None:
    model = Residual().train()
    model.bn1.eval()
    plan = plan_conversion(model, "acb")
    assert plan.converted == {"conv2": "bn2"}
    assert plan.skipped["conv1"] == (
        "its normalisation does not fit: it is in eval mode and its convolution in train mode"
    )
    assert list(plan_conversion(model.eval(), "acb").converted) == ["conv1", "conv2"]


def test_include_takes_patterns_and_functions() -> None:
    for include in (["conv2"], "conv2", lambda name, conv: conv.in_channels == 8):
        model = reparameterize(Residual(), "acb", include=include)
        assert [name for name, m in model.named_modules() if isinstance(m, ReparamBlock)] == ["conv2"]
    with pytest.raises(InputError, match=r"pattern 'layer\*' of include matches none of .* conv1, conv2, shortcut.0"):
        reparameterize(Residual(), "acb", include=["conv1", "layer*"])
