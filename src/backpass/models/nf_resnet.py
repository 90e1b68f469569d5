"""NF-ResNet: residual nets without normalisation, with scaled weight standardisation (Brock et al., ICLR 2021)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backpass.models.registry import register_model
from backpass.models.resnet import BOTTLENECK_WIDTHS

__all__ = [
    "NFBlock",
    "NFResNet",
    "ScaledStdConv2d",
    "StochasticDepth",
    "nf_resnet26",
    "nf_resnet50",
    "same_pad",
    "standardize_weight",
]

RELU_GAIN = 1.7139588594446636  # 1 / std(ReLU(x)) for a standard normal x, as published: measured, theory 1.71286


def standardize_weight(weight: Tensor, gain: Tensor, eps: float = 1e-4) -> Tensor:
    """Return ``gain * (W - mean) / sqrt(max(N * var, eps))``, each output channel on its own.

    Scaled weight standardisation (Brock et al., "Characterizing signal propagation to close the performance gap in
    unnormalized ResNets", ICLR 2021, equation 3): a filter of the result has mean 0 and, but for the gain, norm 1.

    Args:
        weight: shape ``(C_out, C_in / groups, k_h, k_w)``; N is the product of all axes but the first, and the
            variance is the biased one.
        gain: shape ``(C_out,)``.
        eps: lower bound of ``N * var``, the squared norm of the centred filter.
    """
    fan_in = weight[0].numel()
    var, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
    return (weight - mean) * (gain.view(-1, 1, 1, 1) * torch.rsqrt((fan_in * var).clamp(min=eps)))


def same_pad(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Return ``x`` padded with zeros so that a sliding window gives ``ceil(side / stride)`` outputs a side.

    This is TensorFlow's "SAME" padding: an odd pixel goes to the bottom and right, not to the top and left.

    Args:
        x: shape ``(N, C, H, W)``.
        kernel_size: side of the window.
        stride: stride of the window.

    >>> same_pad(torch.ones(1, 1, 2, 2), kernel_size=3, stride=2)
    tensor([[[[1., 1., 0.],
              [1., 1., 0.],
              [0., 0., 0.]]]])
    """
    pads: list[int] = []
    for side in (x.shape[3], x.shape[2]):  # F.pad wants the last axis first
        outputs = -(-side // stride)
        total = max((outputs - 1) * stride + kernel_size - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


torch.fx.wrap("same_pad")  # torch.fx cannot trace arithmetic with max() on the shape of the input


class ScaledStdConv2d(nn.Conv2d):
    """A conv with a bias that standardises its weight by :func:`standardize_weight` in each forward pass.

    ``gain`` starts at one and the bias at zero; the weight is drawn from N(0, 1 / N), N the fan-in.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.gain = nn.Parameter(torch.ones(out_channels))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of ``x``, without padding, with the standardised weight."""
        weight = standardize_weight(self.weight, self.gain)
        return F.conv2d(x, weight, self.bias, self.stride)


class StochasticDepth(nn.Module):
    """In training, zero each example with probability ``rate``; what remains is not rescaled."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` of shape ``(N, C, H, W)``, in training with some examples zeroed."""
        if not self.training or self.rate == 0:
            return x
        return x * (torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.rate)


def scaled_relu(x: Tensor) -> Tensor:
    """Return ``ReLU(x) * 1.714``, which has variance 1 for standard normal ``x``."""
    return F.relu(x) * RELU_GAIN


class NFBlock(nn.Module):
    """A norm-free pre-activation bottleneck: ``alpha * skip_gain * residual(a) + shortcut``.

    With ``a = act(x) * beta``, the shortcut is a strided 1x1 conv of ``a`` where the block changes the shape, else
    ``x``; the residual is a 1x1 conv to a quarter of the width, 3x3 and 1x1, with ``act`` between them.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the 3x3 conv and of the projection.
        beta: one over the standard deviation expected of the input at initialisation, when ``skip_gain`` is one.
        alpha: factor of the residual.
        drop_rate: rate of stochastic depth on the residual.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, beta: float, alpha: float, drop_rate: float
    ) -> None:
        super().__init__()
        width = out_channels // 4
        self.stride = stride
        self.beta = beta
        self.alpha = alpha
        self.projection = (
            ScaledStdConv2d(in_channels, out_channels, 1, stride)
            if stride != 1 or in_channels != out_channels
            else None
        )
        self.conv1 = ScaledStdConv2d(in_channels, width, 1)
        self.conv2 = ScaledStdConv2d(width, width, 3, stride)
        self.conv3 = ScaledStdConv2d(width, out_channels, 1)
        self.drop = StochasticDepth(drop_rate)
        self.skip_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the scaled residual and the shortcut."""
        activated = scaled_relu(x) * self.beta
        shortcut = x if self.projection is None else self.projection(activated)
        out = scaled_relu(self.conv1(activated))
        out = scaled_relu(self.conv2(same_pad(out, 3, self.stride)))
        out = self.drop(self.conv3(out))
        residual: Tensor = out * (self.skip_gain * self.alpha)
        return residual + shortcut


class NFResNet(nn.Module):
    """NF-ResNet as DeepMind published it (deepmind-research, ``nfnets``).

    A 7x7 stem of 64 channels with stride 2 and a 3x3 max-pool of stride 2, four stages of :class:`NFBlock`, ReLU,
    the mean over the map, and a linear layer drawn from N(0, 0.01 ** 2) with zero bias. The expected variance
    starts at 1 and grows by ``alpha ** 2`` a block; the first block of a stage resets it to 1 before that.
    Stochastic depth rises linearly from 0 at the first block towards ``drop_rate`` after the last.

    timm's ``nf_resnet26`` and ``nf_resnet50`` differ: their projection is a 2x2 average pool and a 1x1 conv, they
    have no ``skip_gain`` but start the gain of each block's last conv at zero, their padding is symmetric, the
    activation's gain multiplies the weight, and stochastic depth is off by default.

    Args:
        depths: number of blocks of each stage.
        num_classes: number of logits.
        in_channels: channels of the images.
        alpha: factor of the residuals.
        drop_rate: final rate of stochastic depth.
    """

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int,
        in_channels: int,
        alpha: float = 0.2,
        drop_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.stem = ScaledStdConv2d(in_channels, 64, 7, stride=2)
        blocks: list[NFBlock] = []
        channels = 64
        variance = 1.0
        for stage, (width, depth) in enumerate(zip(BOTTLENECK_WIDTHS, depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                rate = drop_rate * len(blocks) / sum(depths)
                blocks.append(NFBlock(channels, width, stride, variance**-0.5, alpha, rate))
                channels = width
                variance = (1.0 if index == 0 else variance) + alpha**2
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, in_channels, H, W)``."""
        x = self.stem(same_pad(x, 7, 2))
        x = F.max_pool2d(same_pad(x, 3, 2), 3, stride=2)  # a zero may win, since the first block begins with a ReLU
        logits: Tensor = self.fc(scaled_relu(self.blocks(x)).mean((2, 3)))
        return logits


@register_model
def nf_resnet26(num_classes: int = 1000, in_channels: int = 3) -> NFResNet:
    """Return NF-ResNet-26: 15,995,184 parameters, 2.342G MACs, 9 convs with k > 1.

    Counts are for 1000 classes and one 224x224 image.
    """
    return NFResNet((2, 2, 2, 2), num_classes, in_channels)


@register_model
def nf_resnet50(num_classes: int = 1000, in_channels: int = 3) -> NFResNet:
    """Return NF-ResNet-50: 25,557,048 parameters, 4.089G MACs, 17 convs with k > 1.

    Counts are for 1000 classes and one 224x224 image.
    """
    return NFResNet((3, 4, 6, 3), num_classes, in_channels)
