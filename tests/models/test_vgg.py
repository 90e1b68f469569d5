import pytest
import torch
from torch import nn

from backpass.errors import InputError
from backpass.models import create_model


@pytest.mark.parametrize(
    ("name", "letter"), [("vgg11_bn", "A"), ("vgg13_bn", "B"), ("vgg16_bn", "D"), ("vgg19_bn", "E")]
)
def test_features_are_those_of_torchvision(name, letter):
    vgg = pytest.importorskip("torchvision.models.vgg")
    with torch.device("meta"):
        features = create_model(name).features
        oracle = vgg.make_layers(vgg.cfgs[letter], batch_norm=True)
    assert [(type(layer), layer.extra_repr().replace(", inplace=True", "")) for layer in features] == [
        (type(layer), layer.extra_repr().replace("inplace=True", "")) for layer in oracle
    ]


def test_the_large_head():
    with torch.device("meta"):
        head = create_model("vgg11_bn", num_classes=9).classifier
    assert repr(list(head)) == repr(
        [
            nn.Linear(512, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 9),
        ]
    )


@pytest.mark.parametrize("hidden", [1, 2, 3])
def test_the_small_head(hidden):
    with torch.device("meta"):
        head = create_model("vgg13_small", num_classes=9, hidden_layers=hidden).classifier
    assert repr(list(head)) == repr([nn.Linear(512, 512), nn.ReLU()] * hidden + [nn.Linear(512, 9)])


def test_the_last_pool_alone_has_stride_one_in_the_small_form():
    with torch.device("meta"):
        pools = [m for m in create_model("vgg16_small").features if isinstance(m, nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.stride) for pool in pools] == [(2, 2)] * 4 + [(2, 1)]


def test_initialisation_of_the_small_form():
    model = create_model("vgg16_small", num_classes=100)
    for layer in model.features:
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 30_000:
            expected = (2 / (9 * layer.out_channels)) ** 0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
            assert layer.weight.abs().max().item() > 3 * expected  # normal: no bound at sqrt(3) standard deviations
    for layer in (model.classifier[0], model.classifier[2]):
        bound = layer.out_features**-0.5
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert layer.weight.abs().max().item() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert not layer.bias.any()


@pytest.mark.parametrize(("name", "largest"), [("vgg11_bn", 63), ("vgg11_small", 47)])
def test_sizes_that_reach_the_head(name, largest):
    with torch.device("meta"):
        model = create_model(name)
        for side in (32, largest):
            assert model(torch.empty(2, 3, 32, side)).shape == (2, 100)
        for shape in ((2, 3, 8, 8), (2, 3, 31, 32), (2, 3, 32, largest + 1), (3, 32, 32)):
            with pytest.raises(InputError) as caught:
                model(torch.empty(shape))
            message = str(caught.value)
            assert "(N, C, 32, 32)" in message
            assert f"32 to {largest} pixels" in message
            assert f"got {shape};" in message
            assert "digits_net for 8x8" in message


@pytest.mark.parametrize(("name", "side"), [("vgg11_bn", 64), ("vgg11_small", 48)])
def test_the_first_size_refused_is_the_first_that_leaves_more_than_one_pixel(name, side):
    with torch.device("meta"):
        features = create_model(name).features
        assert features(torch.empty(2, 3, side, side)).shape[2:] == (2, 2)
        assert features(torch.empty(2, 3, side - 1, side - 1)).shape[2:] == (1, 1)


def test_at_least_one_hidden_layer():
    with pytest.raises(InputError, match="expected hidden_layers to be at least 1, got 0"):
        create_model("vgg11_small", hidden_layers=0)
