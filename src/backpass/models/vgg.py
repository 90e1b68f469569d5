"""VGG for 32x32 images, with the large head of SGS Table 4, the small head of SGS Table 1, and a narrow one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.models.initialization import init_convs_fan_out_
from backpass.models.registry import register_model

__all__ = [
    "VGG",
    "vgg11_bn",
    "vgg11_narrow",
    "vgg11_small",
    "vgg13_bn",
    "vgg13_small",
    "vgg16_bn",
    "vgg16_small",
    "vgg19_bn",
    "vgg19_small",
]

_WIDTHS = (64, 128, 256, 512, 512)
_NARROW_WIDTHS = (24, 48, 96, 128, 128)
_CONVS_PER_STAGE = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Five stages of 3x3 convs, each with BN and ReLU, that end in a 1x1 map, and a head.

    Args:
        depth: 11, 13, 16 or 19, the number of weight layers of the original network.
        in_channels: channels of the images.
        classifier: maps ``(N, widths[-1])`` to logits.
        conv_bias: whether the convs have a bias.
        last_pool_stride: stride of the last 2x2 max-pool; that of the four before is 2.
        widths: channels of each stage.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int,
        classifier: nn.Module,
        *,
        conv_bias: bool,
        last_pool_stride: int,
        widths: Sequence[int] = _WIDTHS,
    ) -> None:
        super().__init__()
        self.features = _features(depth, in_channels, widths, conv_bias, last_pool_stride)
        self.classifier = classifier
        self.max_side = 63 if last_pool_stride == 2 else 47

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, in_channels, 32, 32)``.

        Raises:
            InputError: the images are of a size that does not leave a 1x1 map to the head.
        """
        _check_images(x, self.max_side)
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _features(
    depth: int, in_channels: int, widths: Sequence[int], conv_bias: bool, last_pool_stride: int
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, convs in zip(widths, _CONVS_PER_STAGE[depth], strict=True):
        for _ in range(convs):
            layers += [
                nn.Conv2d(in_channels, width, 3, padding=1, bias=conv_bias),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            in_channels = width
        layers.append(nn.MaxPool2d(2, 2))
    layers[-1] = nn.MaxPool2d(2, last_pool_stride)
    return nn.Sequential(*layers)


def _check_images(x: Tensor, max_side: int) -> None:
    if x.ndim != 4 or not all(32 <= side <= max_side for side in x.shape[2:]):
        raise InputError(
            f"expected images of shape (N, C, 32, 32), or with sides of 32 to {max_side} pixels, which leave the 1x1 "
            f"map that this VGG's head takes, got {tuple(x.shape)}; resize or pad the images, or choose a model with "
            "global pooling, such as resnet18, or digits_net for 8x8 images"
        )


torch.fx.wrap("_check_images")  # torch.fx cannot trace a decision on the shape of the input


def _large_head_vgg(depth: int, num_classes: int, in_channels: int) -> VGG:
    classifier = nn.Sequential(
        nn.Linear(512, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, num_classes),
    )
    return VGG(depth, in_channels, classifier, conv_bias=True, last_pool_stride=2)


def _small_head_vgg(depth: int, num_classes: int, in_channels: int, hidden_layers: int) -> VGG:
    if hidden_layers < 1:
        raise InputError(f"expected hidden_layers to be at least 1, got {hidden_layers}; SGS Table 1 uses 1")
    hidden = [layer for _ in range(hidden_layers) for layer in (nn.Linear(512, 512), nn.ReLU())]
    classifier = nn.Sequential(*hidden, nn.Linear(512, num_classes))
    model = VGG(depth, in_channels, classifier, conv_bias=False, last_pool_stride=1)
    init_convs_fan_out_(model)
    for module in classifier:
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.out_features)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)
    return model


@register_model
def vgg11_bn(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """Return VGG-11: 28,518,244 parameters, 172.05M MACs, 8 convs with k > 1 (SGS Table 4).

    Convs have a bias. The head is Linear 512-4096, ReLU, Dropout 0.5, Linear 4096-4096, ReLU, Dropout 0.5, Linear
    4096-classes. Initialisation is PyTorch's default. Counts are for 100 classes and one 32x32 image.
    """
    return _large_head_vgg(11, num_classes, in_channels)


@register_model
def vgg13_bn(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """Return VGG-13: 28,703,140 parameters, 247.55M MACs, 10 convs with k > 1 (SGS Table 4).

    Layout, head and initialisation as in :func:`vgg11_bn`.
    """
    return _large_head_vgg(13, num_classes, in_channels)


@register_model
def vgg16_bn(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """Return VGG-16: 34,015,396 parameters, 332.48M MACs, 13 convs with k > 1 (SGS Table 4).

    Layout, head and initialisation as in :func:`vgg11_bn`.
    """
    return _large_head_vgg(16, num_classes, in_channels)


@register_model
def vgg19_bn(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """Return VGG-19: 39,327,652 parameters, 417.42M MACs, 16 convs with k > 1 (SGS Table 4).

    Layout, head and initialisation as in :func:`vgg11_bn`.
    """
    return _large_head_vgg(19, num_classes, in_channels)


@register_model
def vgg11_narrow(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """Return a VGG-11 for comparisons on a CPU: 702,844 parameters, 16.60M MACs, 8 convs with k > 1.

    Its convs have 24, 48, 96, 96, 128, 128, 128 and 128 channels and no bias; the head is one linear layer.
    Initialisation of the convs as in :func:`vgg16_small`. No paper has this net.
    """
    width = _NARROW_WIDTHS[-1]
    model = VGG(
        11,
        in_channels,
        nn.Linear(width, num_classes),
        conv_bias=False,
        last_pool_stride=2,
        widths=_NARROW_WIDTHS,
    )
    init_convs_fan_out_(model)
    return model


@register_model
def vgg11_small(num_classes: int = 100, in_channels: int = 3, hidden_layers: int = 1) -> VGG:
    """Return VGG-11 with the small head and ``hidden_layers`` hidden layers: 9.54M parameters at 100 classes.

    With two, 9.80M parameters and 153.3M MACs, it is the VGG-11 of SGS's published configuration files. Layout and
    initialisation as in :func:`vgg16_small`.
    """
    return _small_head_vgg(11, num_classes, in_channels, hidden_layers)


@register_model
def vgg13_small(num_classes: int = 100, in_channels: int = 3, hidden_layers: int = 1) -> VGG:
    """Return VGG-13 with the small head and ``hidden_layers`` hidden layers: 9.72M parameters at 100 classes.

    Layout and initialisation as in :func:`vgg16_small`.
    """
    return _small_head_vgg(13, num_classes, in_channels, hidden_layers)


@register_model
def vgg16_small(num_classes: int = 100, in_channels: int = 3, hidden_layers: int = 1) -> VGG:
    """Return the VGG-16 of SGS Table 1: 15.03M parameters, 313.5M MACs, 13 convs with k > 1.

    At 10 classes 14.99M parameters. Convs have no bias; the last max-pool is 2x2 with stride 1; the head is
    Linear 512-512, ReLU (``hidden_layers`` times), Linear 512-classes, without dropout.

    Initialisation: convs N(0, 2 / (k * k * C_out)); linear weights uniform within ±1 / sqrt(out_features), linear
    biases zero. Published accuracy, plain -> SGS: CIFAR-10 94.90 -> 95.20, CIFAR-100 73.70 -> 75.50.

    Raises:
        InputError: ``hidden_layers`` is below 1.
    """
    return _small_head_vgg(16, num_classes, in_channels, hidden_layers)


@register_model
def vgg19_small(num_classes: int = 100, in_channels: int = 3, hidden_layers: int = 1) -> VGG:
    """Return VGG-19 with the small head and ``hidden_layers`` hidden layers: 20.34M parameters at 100 classes.

    Layout and initialisation as in :func:`vgg16_small`.
    """
    return _small_head_vgg(19, num_classes, in_channels, hidden_layers)
