import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from backpass.errors import InputError, NoEffectWarning
from backpass.models import create_model
from backpass.models.cost import count_macs, count_parameters
from backpass.reparam import (
    BLOCKS,
    ACBlock,
    Conversion,
    DyRepBlock,
    ReparamBlock,
    fuse,
    plan_conversion,
    reparameterize,
    to_plain,
)
from reference.reparam_cases import Residual, Untraceable, images, randomise


@pytest.mark.parametrize("name", BLOCKS)
def test_convolutions_become_blocks_and_their_normalisations_identities(name: str) -> None:
    model = Residual()
    converted = reparameterize(model, name)
    assert type(converted.conv1) is type(converted.conv2) is BLOCKS[name]
    assert type(converted.bn1) is type(converted.bn2) is nn.Identity
    assert type(converted.shortcut[0]) is nn.Conv2d
    assert type(model.conv1) is nn.Conv2d
    assert converted.conv1.absorbed == (converted.bn1,)
    assert not any("absorbed" in key for key in converted.state_dict())
    out = converted.train()(images(4, 3, 8, 8))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in converted.parameters())


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


def test_converting_twice_equals_converting_once() -> None:
    once = reparameterize(Residual(), "acb")
    keys = list(once.state_dict())
    with pytest.warns(NoEffectWarning, match=r"1 skipped: its kernel must be square.*\n    shortcut.0"):
        twice = reparameterize(once, "acb")
    assert list(twice.state_dict()) == keys
    with pytest.warns(NoEffectWarning, match=r"no layer of Linear; it has no nn.Conv2d outside of blocks"):
        reparameterize(nn.Linear(2, 2), "acb")


def test_single_init_keeps_the_function_of_a_trained_model() -> None:
    model = randomise(Residual()).eval()
    x = images(4, 3, 9, 9)
    torch.testing.assert_close(reparameterize(model, "acb", init="single")(x), model(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(reparameterize(model, "acb")(x), model(x), atol=0.1)


def test_a_residual_that_starts_at_zero_still_does() -> None:
    model = Residual()
    nn.init.zeros_(model.bn2.weight)
    converted = reparameterize(model, "repvgg")
    out = converted.conv2(images(4, 8, 5, 5))
    assert not out.any()
    assert converted.conv1(images(4, 3, 9, 9)).any()


def test_options_reach_the_blocks() -> None:
    model = reparameterize(Residual(), "dbb_dyrep", branches=("kxk", "1xk"))
    assert list(model.conv2.branches) == ["kxk", "1xk"]
    assert reparameterize(Residual(), "acb", gamma=0.25).conv1.main.norm.weight.unique().tolist() == [0.25]


def test_include_takes_patterns_and_functions() -> None:
    for include in (["conv2"], "conv2", lambda name, conv: conv.in_channels == 8):
        model = reparameterize(Residual(), "acb", include=include)
        assert [name for name, m in model.named_modules() if isinstance(m, ReparamBlock)] == ["conv2"]
    with pytest.raises(InputError, match=r"pattern 'layer\*' of include matches none of .* conv1, conv2, shortcut.0"):
        reparameterize(Residual(), "acb", include=["conv1", "layer*"])


def test_a_probe_opens_models_that_cannot_be_traced() -> None:
    with pytest.warns(NoEffectWarning, match=r"could not be traced"):
        reparameterize(Untraceable(), "acb")
    model = reparameterize(Untraceable(), "acb", probe=images(1, 3, 8, 8))
    assert isinstance(model.conv1, ACBlock)


def test_a_layer_with_two_names_becomes_one_block() -> None:
    shared, norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
    model = reparameterize(nn.Sequential(shared, norm, nn.ReLU(), shared, norm), "dbb_dyrep")
    assert isinstance(model[0], DyRepBlock)
    assert model[3] is model[0]
    assert type(model[1]) is type(model[4]) is nn.Identity


def test_unknown_names_and_options_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"one of acb, repvgg, dbb, dbb_dyrep, got 'obb'"):
        reparameterize(Residual(), "obb")
    with pytest.raises(InputError, match=r"acb has the options gamma, init; got branches"):
        reparameterize(Residual(), "acb", branches=["kxk"])


def test_in_place_keeps_the_parameters_that_an_optimizer_may_hold() -> None:
    model = Residual()
    weights = [model.conv1.weight, model.bn1.weight, model.fc.weight]
    assert reparameterize(model, "dbb", inplace=True) is model
    ids = {id(parameter) for parameter in model.parameters()}
    assert all(id(weight) in ids for weight in weights)


# Parameters and multiply-accumulates in the SGS tables' counting; None where the table prints other units.
COSTS = [
    ("vgg16_small", 10, (14.99e6, 313.5e6), (24.81e6, 522.3e6), (16.64e6, 348.3e6), None, (34.56e6, 727.7e6)),
    ("vgg16_small", 100, (15.03e6, 313.5e6), (24.86e6, 522.3e6), (16.68e6, 348.3e6), None, (34.61e6, 727.8e6)),
    ("vgg11_small_2h", 100, (9.80e6, 153.3e6), (15.96e6, 255.2e6), (10.83e6, 170.3e6), None, (22.03e6, 353.7e6)),
    (
        "vgg11_bn",
        100,
        (28_518_244, 172.05e6),
        (34_671_652, 273.9e6),
        (29_548_772, 189.0e6),
        (40_746_099, 372.4e6),
        None,
    ),
    ("vgg16_bn", 100, (34_015_396, 332.5e6), (43_835_044, 541.3e6), (35_660_644, 367.3e6), (53_580_147, 746.7e6), None),
    ("resnet18", 100, (11_220_132, 555.5e6), (18_560_548, 921.6e6), (12_454_628, 616.5e6), (25_821_555, 1313e6), None),
]


@pytest.mark.parametrize("row", COSTS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_costs_equal_those_of_the_specification(row: tuple) -> None:
    name, classes, *expected = row
    with torch.device("meta"):
        plain = create_model(name, num_classes=classes)
    for block, cost in zip([None, *BLOCKS], expected, strict=True):
        if cost is None:
            continue
        model = plain if block is None else reparameterize(plain, block)
        parameters, macs = cost
        if isinstance(parameters, int):
            assert count_parameters(model) == parameters, block
        else:
            assert count_parameters(model) == pytest.approx(parameters, abs=0.0051e6), block
        assert count_macs(model, (3, 32, 32)) == pytest.approx(macs, abs=0.55e6 if macs > 1e9 else 0.1e6), block


def test_the_two_dbbs_differ_by_one_bias_per_block() -> None:
    with torch.device("meta"):
        plain = create_model("resnet18")
    authors, dyreps = reparameterize(plain, "dbb"), reparameterize(plain, "dbb_dyrep")
    biases = sum(m.geometry.out_channels for m in dyreps.modules() if isinstance(m, DyRepBlock))
    assert count_parameters(dyreps) - count_parameters(authors) == biases > 0


IMAGENET_COSTS = [
    ("resnet18", (11.69, 1.814), (19.03, 2.932), (12.92, 2.000), (26.29, 4.126)),
    ("resnet34", (21.80, 3.664), (35.89, 6.014), (24.17, 4.056), (49.91, 8.442)),
    ("resnet50", (25.56, 4.089), (33.12, 5.322), (26.83, 4.295), (40.69, 6.787)),
]


@pytest.mark.parametrize("row", IMAGENET_COSTS, ids=lambda row: row[0])
def test_costs_on_imagenet_equal_those_of_the_specification(row: tuple) -> None:
    models = pytest.importorskip("torchvision.models")
    name, *expected = row
    with torch.device("meta"):
        plain = getattr(models, name)()
    for block, (parameters, macs) in zip([None, "acb", "repvgg", "dbb_dyrep"], expected, strict=True):
        model = plain if block is None else reparameterize(plain, block)
        assert count_parameters(model) / 1e6 == pytest.approx(parameters, abs=0.006), block
        assert count_macs(model, (3, 224, 224)) / 1e9 == pytest.approx(macs, abs=0.0006), block


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


class ProcessGroup:
    """Like torch's: has no copy."""

    def __deepcopy__(self, memo: dict) -> None:
        raise TypeError("cannot pickle ProcessGroup")


def test_models_with_a_process_group_are_converted_and_fused_as_copies() -> None:
    group = ProcessGroup()
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.SyncBatchNorm(3, process_group=group)).eval()
    converted = reparameterize(model, "acb")
    assert converted[0] is not model[0]
    assert {branch.norm.process_group for _, branch in converted[0].items()} == {group}
    x = images(2, 3, 8, 8)
    torch.testing.assert_close(fuse(converted)(x), converted(x))
    assert to_plain(converted)[1].process_group is group
