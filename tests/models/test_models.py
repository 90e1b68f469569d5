"""One battery for every model in the registry: cost, biases, training step, state_dict, tracing."""

import io
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backpass.models import count_macs, count_parameters, create_model, list_models


@dataclass(frozen=True)
class Row:
    parameters: int
    mega_macs: float
    spatial_convs: int
    depthwise_convs: int
    biased_convs: str
    image: tuple[int, int, int] = (3, 32, 32)
    train_side: int = 16
    slow: bool = False  # a training step of the model is; others of its family stay quick


IMAGENET = {"image": (3, 224, 224), "train_side": 64}
SCENE = {"image": (3, 713, 713), "train_side": 33}
PERSON = {"image": (3, 256, 256), "train_side": 64}

# Parameters and MACs at the default number of classes: 100, 1000 on ImageNet, 10 for digits_net, 19 for scenes, 16
# joints for persons. Parameters and convs of an auxiliary head count, its MACs do not, since only training runs it.
TABLE = {
    "digits_net": Row(56_554, 1.79, 3, 0, "none", image=(1, 8, 8), train_side=8),
    "vgg11_narrow": Row(702_844, 16.60, 8, 0, "none", train_side=32),
    "resnet20": Row(275_572, 40.56, 19, 0, "none"),
    "depthwise_net": Row(159_908, 16.55, 6, 5, "none"),
    "vgg11_bn": Row(28_518_244, 172.05, 8, 0, "all", train_side=32),
    "vgg13_bn": Row(28_703_140, 247.55, 10, 0, "all", train_side=32, slow=True),
    "vgg16_bn": Row(34_015_396, 332.48, 13, 0, "all", train_side=32),
    "vgg19_bn": Row(39_327_652, 417.42, 16, 0, "all", train_side=32, slow=True),
    "vgg11_small": Row(9_537_188, 153.08, 8, 0, "none", train_side=32),
    "vgg13_small": Row(9_721_892, 228.58, 10, 0, "none", train_side=32, slow=True),
    "vgg16_small": Row(15_032_868, 313.51, 13, 0, "none", train_side=32),
    "vgg19_small": Row(20_343_844, 398.45, 16, 0, "none", train_side=32, slow=True),
    "resnet18": Row(11_220_132, 555.47, 17, 0, "none"),
    "resnet34": Row(21_328_292, 1159.45, 33, 0, "none", slow=True),
    "resnet50": Row(23_705_252, 1298.01, 17, 0, "none"),
    "shufflenet": Row(1_012_108, 41.69, 17, 16, "all"),
    "mobilenetv2": Row(2_369_380, 64.95, 17, 17, "all"),
    "seresnet18": Row(11_314_012, 555.56, 17, 0, "all"),
    "seresnet34": Row(21_498_000, 1159.61, 33, 0, "all", slow=True),
    "preactresnet18": Row(11_222_244, 555.47, 17, 0, "all"),
    "preactresnet34": Row(21_334_116, 1159.45, 33, 0, "all", slow=True),
    "pyramidnet110_a48": Row(1_778_556, 403.82, 109, 0, "none"),
    "pyramidnet110_a84": Row(3_913_536, 772.18, 109, 0, "none", slow=True),
    "pyramidnet110_a270": Row(28_511_307, 4718.01, 109, 0, "none", slow=True),
    "xception": Row(21_013_988, 1129.87, 36, 34, "shortcuts"),
    "nonorm_resnet18": Row(11_679_912, 1814.07, 17, 0, "none", **IMAGENET),
    "nonorm_resnet50": Row(25_503_912, 4089.18, 17, 0, "none", slow=True, **IMAGENET),
    "nf_resnet26": Row(15_995_184, 2342.26, 9, 0, "all", **IMAGENET),
    "nf_resnet50": Row(25_557_048, 4089.18, 17, 0, "all", slow=True, **IMAGENET),
    "pspnet18": Row(16_764_262, 133_407.74, 19, 0, "heads", **SCENE),
    "pspnet34": Row(26_872_422, 216_988.82, 35, 0, "heads", slow=True, **SCENE),
    "pspnet50": Row(48_956_262, 350_004.97, 19, 0, "heads", slow=True, **SCENE),
    "pose_resnet18": Row(15_376_464, 3861.91, 17, 0, "heads", **PERSON),
    "pose_resnet34": Row(25_484_624, 6277.82, 33, 0, "heads", slow=True, **PERSON),
    "pose_resnet50": Row(33_999_440, 7234.13, 17, 0, "heads", slow=True, **PERSON),
}
HEADS = {"pspnet": 2, "pose_resnet": 1}
QUICK_OR_SLOW = [pytest.param(name, marks=pytest.mark.slow) if row.slow else name for name, row in TABLE.items()]
ONE_A_FAMILY = [
    "digits_net",
    "vgg11_small",
    "resnet18",
    "shufflenet",
    "mobilenetv2",
    "seresnet18",
    "preactresnet18",
    "pyramidnet110_a48",
    "xception",
    "nonorm_resnet18",
    "nf_resnet26",
    "pspnet18",
    "pose_resnet18",
]


def on_meta(name: str, **kwargs: int) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **kwargs)


def images(name: str, batch: int = 2) -> Tensor:
    side = TABLE[name].train_side
    return torch.randn(batch, TABLE[name].image[0], side, side)


def pooled(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return one vector an image: logits, or the mean over the maps of all heads of a dense output."""
    heads = output if isinstance(output, tuple) else (output,)
    return torch.stack([head.flatten(2).mean(2) if head.ndim == 4 else head for head in heads]).sum(0)


def test_the_table_holds_every_registered_model():
    assert sorted(TABLE) == list_models()


@pytest.mark.parametrize("name", TABLE)
def test_cost(name):
    row = TABLE[name]
    model = on_meta(name)
    assert count_parameters(model) == row.parameters
    assert count_macs(model, row.image) / 1e6 == pytest.approx(row.mega_macs, abs=0.006)


@pytest.mark.parametrize("name", TABLE)
def test_convs(name):
    row = TABLE[name]
    convs = [module for module in on_meta(name).modules() if isinstance(module, nn.Conv2d)]
    spatial = [conv for conv in convs if max(conv.kernel_size) > 1]
    assert len(spatial) == row.spatial_convs
    assert sum(conv.groups > 1 for conv in spatial) == row.depthwise_convs
    assert all(conv.groups in (1, conv.in_channels) for conv in spatial)
    biased = sum(conv.bias is not None for conv in convs)
    heads = HEADS.get(name.rstrip("0123456789"), 0)
    assert biased == {"all": len(convs), "none": 0, "shortcuts": 4, "heads": heads}[row.biased_convs]


@pytest.mark.parametrize(
    ("name", "classes", "hidden", "parameters", "mega_macs"),
    [("vgg16_small", 10, 1, 14.99, 313.5), ("vgg16_small", 100, 1, 15.03, 313.5), ("vgg11_small", 100, 2, 9.80, 153.3)],
)
def test_cost_of_the_small_head_vggs_as_the_sgs_tables_print_it(name, classes, hidden, parameters, mega_macs):
    model = on_meta(name, num_classes=classes, hidden_layers=hidden)
    assert count_parameters(model) / 1e6 == pytest.approx(parameters, abs=0.005)
    assert count_macs(model, (3, 32, 32)) / 1e6 == pytest.approx(mega_macs, abs=0.1)


@pytest.mark.parametrize(
    ("name", "parameters", "giga_macs"),
    [("resnet18", 11.69, 1.814), ("resnet34", 21.80, 3.664), ("resnet50", 25.56, 4.089)],
)
def test_cost_of_the_imagenet_models_from_timm(name, parameters, giga_macs):
    pytest.importorskip("timm")
    model = on_meta(f"timm/{name}")
    assert count_parameters(model) / 1e6 == pytest.approx(parameters, abs=0.005)
    assert count_macs(model, (3, 224, 224)) / 1e9 == pytest.approx(giga_macs, abs=0.0006)


@pytest.mark.parametrize("name", QUICK_OR_SLOW)
def test_one_training_step(name):
    model = create_model(name, num_classes=7)
    logits = pooled(model.train()(images(name)))
    assert logits.shape == (2, 7)
    F.cross_entropy(logits, torch.tensor([0, 6])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", TABLE)
def test_in_channels(name):
    model = on_meta(name, num_classes=2, in_channels=5)
    side = TABLE[name].train_side
    assert pooled(model(torch.empty(4, 5, side, side, device="meta"))).shape == (4, 2)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_state_dict_round_trip(name):
    source, target = create_model(name, num_classes=3), create_model(name, num_classes=3)
    x = images(name)
    source(x)  # moves the running statistics of BN
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    source.eval(), target.eval()
    with torch.no_grad():
        if name != "nf_resnet26":  # its residuals count for nothing at first, and its head for next to nothing
            assert not torch.allclose(source(x), target(x))
        target.load_state_dict(torch.load(file, weights_only=True), strict=True)
        torch.testing.assert_close(target(x), source(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_torch_fx_traces_the_model(name):
    model = create_model(name, num_classes=3).eval()
    x = images(name)
    with torch.no_grad():
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x), rtol=0, atol=0)
