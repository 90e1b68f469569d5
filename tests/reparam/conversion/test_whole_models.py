"""Blocks in whole networks of torchvision and timm: what is converted, and one plain network of the same function."""

import copy
from collections import Counter
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from backpass.errors import NoEffectWarning
from backpass.reparam import (
    BLOCKS,
    DyRep,
    ReparamBlock,
    block_map,
    fuse,
    load_state_dict,
    plan_conversion,
    reparameterize,
    to_plain,
)
from reference.reparam_cases import images

models = pytest.importorskip("torchvision.models")
timm = pytest.importorskip("timm")

POINTWISE = "its kernel must be square with 2 to 6 taps a side, got (1, 1)"
LARGE = "its kernel must be square with 2 to 6 taps a side, got (7, 7)"

# Convolutions that become blocks, and those that do not by their reason; the same for all blocks.
EXPECTED = {
    "resnet18": (16, {POINTWISE: 3, LARGE: 1}),
    "resnet50": (16, {POINTWISE: 36, LARGE: 1}),
    "vgg16_bn": (13, {}),
    "mobilenet_v2": (18, {POINTWISE: 34}),
    "timm/repvgg_a0": (22, {POINTWISE: 22}),
    "timm/regnetx_002": (14, {POINTWISE: 30}),
    "timm/regnety_002": (14, {POINTWISE: 56}),
    "timm/efficientnet_b0": (17, {POINTWISE: 64}),
}
X = images(2, 3, 64, 64)
# Squeeze-and-excitation and sigmoids magnify rounding up to hundredfold: these in float64, which leaves no excuse.
WIDE = {"timm/regnety_002", "timm/efficientnet_b0"}
# The larger and the repeated: one block each by default, the others when slow tests run.
SLOW = {"resnet50", "vgg16_bn", *WIDE}


def cases() -> list:
    return [
        pytest.param(name, block, marks=[pytest.mark.slow] if name in SLOW and block != "dbb_dyrep" else [])
        for name in EXPECTED
        for block in BLOCKS
    ]


@cache
def plain(name: str) -> nn.Module:
    """The network with random weights; tests convert copies of it."""
    if name.startswith("timm/"):
        return timm.create_model(name.removeprefix("timm/"), num_classes=10)
    return getattr(models, name)(num_classes=10)


def randomised(model: nn.Module) -> nn.Module:
    """Draw all statistics, gammas and betas, near enough to the default ones for deep networks to stay finite."""
    generator = torch.Generator().manual_seed(0)

    def draw(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                draw(norm.weight, 0.5, 1.5)
                draw(norm.bias, -0.5, 0.5)
                draw(norm.running_mean, -0.5, 0.5)
                draw(norm.running_var, 0.5, 1.5)
    return model.eval()


@torch.no_grad()
def difference(model: nn.Module, other: nn.Module, x: Tensor = X) -> float:
    """The largest deviation of the outputs over all images and classes, over the largest output of ``model``."""
    expected, actual = model(x), other(x)
    scale = expected.abs().max()
    # The output depends on the image: biases alone would not show whether the kernels are right.
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * scale
    return ((actual - expected).abs().max() / scale).item()


@pytest.mark.parametrize(("name", "block"), cases())
def test_networks_are_converted_as_reported_and_fuse_to_the_same_function(name: str, block: str) -> None:
    plan = plan_conversion(plain(name), block)
    converted, reasons = EXPECTED[name]
    assert (len(plan.converted), Counter(plan.skipped.values())) == (converted, reasons)
    dtype = torch.float64 if name in WIDE else torch.float32
    model = randomised(reparameterize(plain(name), block)).to(dtype)
    assert {n for n, m in model.named_modules() if isinstance(m, ReparamBlock)} == set(plan.converted)
    fused = fuse(model)
    assert not any(type(m).__module__.startswith("backpass") for m in fused.modules())
    assert difference(model, fused, X.to(dtype)) < (1e-10 if name in WIDE else 1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_network_without_suitable_convolutions_stays_as_it_is_with_every_reason(block: str) -> None:
    model = timm.create_model("convnext_atto", num_classes=10)
    odd = "its kernel must be square, odd and above 1, got "
    with pytest.warns(NoEffectWarning, match=f"{block} converts no layer of ConvNeXt:\n{block}: 0 of 40 convolutions"):
        same = reparameterize(model, block, inplace=True)
    assert same is model
    reasons = {POINTWISE: 24, LARGE: 12, f"{odd}(2, 2)": 3, f"{odd}(4, 4)": 1}
    assert Counter(plan_conversion(model, block).skipped.values()) == reasons
    assert difference(model.eval(), fuse(model)) == 0.0


def test_the_report_of_a_network_reads_in_a_terminal() -> None:
    report = str(plan_conversion(plain("mobilenet_v2"), "dbb_dyrep")).splitlines()
    assert report[0] == "dbb_dyrep: 18 of 52 convolutions become blocks"
    assert report[1].startswith("    features.0.0+features.0.1, features.1.conv.0.0+features.1.conv.0.1, ")
    assert f"34 skipped: {POINTWISE}" in report
    assert max(map(len, report)) <= 120
    assert len(report) < 20


@pytest.mark.parametrize("name", ["mobilenet_v2", "timm/regnetx_002"])
def test_checkpoints_go_from_the_training_form_to_the_others(name: str) -> None:
    model = randomised(reparameterize(plain(name), "dbb"))
    state, blocks = model.state_dict(), block_map(model)
    for form in ("plain", "training", "fused"):
        target = reparameterize(plain(name), "dbb").eval()
        target = {"plain": to_plain, "training": lambda m: m, "fused": fuse}[form](target)
        load_state_dict(target, state, blocks=blocks)
        assert difference(model, target) < 1e-5, form
    assert to_plain(model).state_dict().keys() == plain(name).state_dict().keys()


@pytest.mark.parametrize("name", ["resnet18", "timm/regnetx_002"])
def test_dyrep_grows_in_a_network_and_keeps_its_function(name: str) -> None:
    model = randomised(copy.deepcopy(plain(name)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    dyrep = DyRep(model, optimizer, every=1, metric="snip")
    nn.functional.cross_entropy(model(X), torch.tensor([1, 2])).backward()
    dyrep.record()
    optimizer.zero_grad()
    before = copy.deepcopy(model)
    event = dyrep.adjust([X])
    assert isinstance(model.get_submodule(event.grown), ReparamBlock)
    assert difference(before, model) < 1e-5
    assert difference(before, fuse(model)) < 1e-5
