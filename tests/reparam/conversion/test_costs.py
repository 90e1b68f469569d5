import pytest
import torch

from backpass.models import create_model
from backpass.models.cost import count_macs, count_parameters
from backpass.reparam import (
    BLOCKS,
    DyRepBlock,
    reparameterize,
)

COSTS = [
    ("vgg16_small", 10, (14.99e6, 313.5e6), (24.81e6, 522.3e6), (16.64e6, 348.3e6), None, (34.56e6, 727.7e6)),
    ("vgg16_small", 100, (15.03e6, 313.5e6), (24.86e6, 522.3e6), (16.68e6, 348.3e6), None, (34.61e6, 727.8e6)),
    ("vgg11_small", 100, (9.80e6, 153.3e6), (15.96e6, 255.2e6), (10.83e6, 170.3e6), None, (22.03e6, 353.7e6)),
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
    hidden = {"hidden_layers": 2} if name == "vgg11_small" else {}
    with torch.device("meta"):
        plain = create_model(name, num_classes=classes, **hidden)
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
