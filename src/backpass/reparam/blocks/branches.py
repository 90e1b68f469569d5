"""The branches from which the blocks are built; each knows the one convolution that it equals."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.reparam.blocks.algebra import KernelBias, average_kernel, chain_pointwise, identity_kernel
from backpass.reparam.blocks.batch_norm import BatchNorm, fold, scale_of, wide
from backpass.reparam.blocks.block import MAIN, Branch, ReparamBlock
from backpass.reparam.blocks.layers import LayerFactory

__all__ = [
    "BatchNormAndPad",
    "ConvBranch",
    "IdentityBranch",
    "IdentityPlusPointwise",
    "PointwiseAverageBranch",
    "PointwiseConvBranch",
    "scale_gammas",
]


class BatchNormAndPad(nn.Module):
    """Batch normalisation, then a border filled with what the normalisation makes of zero.

    The border of channel c holds ``beta - mu * gamma / sqrt(var + eps)``, from the running statistics as
    they are after this forward pass; no gradient flows through it. A following convolution without
    padding then equals, in eval mode, one whose input was zero-padded before the 1x1 convolution in front.
    In train mode the interior uses the statistics of the batch and the border the running ones, as in the
    authors' code (Ding et al. 2021).

    Args:
        norm: the normalisation, of a bias-free 1x1 convolution's output.
        padding: rows and columns of the border.
    """

    def __init__(self, norm: BatchNorm, padding: tuple[int, int]) -> None:
        super().__init__()
        self.norm = norm
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Return shape ``(N, C, H + 2 p_h, W + 2 p_w)`` for ``x`` of ``(N, C, H, W)``."""
        out = cast(Tensor, self.norm(x))
        rows, columns = self.padding
        if not (rows or columns):
            return out
        n, c, h, w = out.shape
        border = self._border().to(out.dtype).view(1, c, 1, 1)
        side = border.expand(n, c, h, columns)
        edge = border.expand(n, c, rows, w + 2 * columns)
        return torch.cat([edge, torch.cat([side, out, side], dim=3), edge], dim=2)

    @torch.no_grad()
    def _border(self) -> Tensor:
        return self.norm.bias - cast(Tensor, self.norm.running_mean) * scale_of(self.norm)


class IdentityPlusPointwise(nn.Conv2d):
    """A 1x1 convolution whose kernel is the identity plus its weight, which starts at zero.

    The identity is a constant, so weight decay pulls the layer towards the identity and not towards zero
    (Ding et al. 2021, section 3.3).
    """

    def __init__(
        self, channels: int, groups: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(channels, channels, 1, groups=groups, bias=False, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Set the weight to zero."""
        nn.init.zeros_(self.weight)

    def effective_weight(self) -> Tensor:
        """Return the kernel that the layer applies."""
        # Made at every call: to_empty(), the way from the meta device, would lose a buffer that no state dict has.
        weight = self.weight
        return weight + identity_kernel(self.in_channels, self.groups, dtype=weight.dtype, device=weight.device)

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` plus its 1x1 convolution with the weight."""
        return nn.functional.conv2d(input, self.effective_weight(), groups=self.groups)


class ConvBranch(Branch):
    """Convolution and normalisation, aligned with the centre of the block's kernel.

    Args:
        layers: the block's layers.
        kernel_size: odd, no larger than the block's. Where a smaller kernel would need less than no padding, the
            input is cropped instead.
        bias: whether the convolution has a bias.
    """

    def __init__(self, layers: LayerFactory, kernel_size: tuple[int, int], *, bias: bool = False) -> None:
        super().__init__()
        rows, columns = layers.geometry.margins(kernel_size)
        self.crop = (max(-rows, 0), max(-columns, 0))
        self.conv = layers.conv(kernel_size=kernel_size, padding=(max(rows, 0), max(columns, 0)), bias=bias)
        self.norm = layers.norm(layers.geometry.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return shape ``(N, C_out, H', W')``."""
        rows, columns = self.crop
        if rows or columns:
            x = x[..., rows : x.shape[-2] - rows, columns : x.shape[-1] - columns]
        return cast(Tensor, self.norm(self.conv(x)))

    def kernel_bias(self) -> KernelBias:
        """Return the convolution with the normalisation folded in (T1)."""
        return fold(self.norm, *_layer_kernel_bias(self.conv))


class IdentityBranch(Branch):
    """A normalisation alone."""

    def __init__(self, layers: LayerFactory) -> None:
        super().__init__()
        self.groups = layers.geometry.groups
        self.norm = layers.norm(layers.geometry.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return shape ``(N, C_out, H, W)``."""
        return cast(Tensor, self.norm(x))

    def kernel_bias(self) -> KernelBias:
        """Return the identity's 1x1 kernel with the normalisation folded in (T1)."""
        gamma = wide(self.norm.weight)
        identity = identity_kernel(len(gamma), self.groups, dtype=gamma.dtype, device=gamma.device)
        return fold(self.norm, identity)


class PointwiseConvBranch(Branch):
    """1x1 convolution, :class:`BatchNormAndPad`, k x k convolution without padding, normalisation.

    Args:
        layers: the block's layers.
        mid_channels: channels between the two convolutions.
        around_identity: whether the 1x1 convolution is an :class:`IdentityPlusPointwise`; this needs
            ``mid_channels == in_channels``.
    """

    def __init__(self, layers: LayerFactory, mid_channels: int, *, around_identity: bool = False) -> None:
        super().__init__()
        geometry = layers.geometry
        self.pointwise: nn.Conv2d = (
            IdentityPlusPointwise(mid_channels, geometry.groups, device=layers.device, dtype=layers.dtype)
            if around_identity
            else _pointwise(layers, mid_channels)
        )
        self.pad = BatchNormAndPad(layers.norm(mid_channels), geometry.padding)
        self.conv = layers.conv(in_channels=mid_channels, padding=0)
        self.norm = layers.norm(geometry.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return shape ``(N, C_out, H', W')``."""
        return cast(Tensor, self.norm(self.conv(self.pad(self.pointwise(x)))))

    def kernel_bias(self) -> KernelBias:
        """Return the two convolutions, normalisations folded in, as one (T1, T3, T4)."""
        first = fold(self.pad.norm, *_layer_kernel_bias(self.pointwise))
        second = fold(self.norm, *_layer_kernel_bias(self.conv))
        return chain_pointwise(*first, *second, groups=self.pointwise.groups)


class PointwiseAverageBranch(Branch):
    """1x1 convolution, :class:`BatchNormAndPad`, average pooling, normalisation.

    For a depthwise convolution only the pooling, which then counts the padded zeros, and the last
    normalisation. Pooling knows no dilation: the block's must be 1.
    """

    def __init__(self, layers: LayerFactory) -> None:
        super().__init__()
        geometry = layers.geometry
        self.groups = geometry.groups
        self.pointwise: nn.Conv2d | None = None
        self.pad: BatchNormAndPad | None = None
        if not geometry.depthwise:
            self.pointwise = _pointwise(layers, geometry.out_channels)
            self.pad = BatchNormAndPad(layers.norm(geometry.out_channels), geometry.padding)
        padding = geometry.padding if geometry.depthwise else 0
        self.pool = nn.AvgPool2d(geometry.kernel_size, geometry.stride, padding)
        self.norm = layers.norm(geometry.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return shape ``(N, C_out, H', W')``."""
        if self.pointwise is not None and self.pad is not None:
            x = self.pad(self.pointwise(x))
        return cast(Tensor, self.norm(self.pool(x)))

    def kernel_bias(self) -> KernelBias:
        """Return pooling and 1x1 convolution, normalisations folded in, as one convolution (T1, T3 to T5)."""
        gamma, size = wide(self.norm.weight), cast(tuple[int, int], self.pool.kernel_size)
        average = average_kernel(len(gamma), size, self.groups, dtype=gamma.dtype, device=gamma.device)
        second = fold(self.norm, average)
        if self.pointwise is None or self.pad is None:
            return second
        first = fold(self.pad.norm, *_layer_kernel_bias(self.pointwise))
        return chain_pointwise(*first, *second, groups=self.groups)


def scale_gammas(branches: Mapping[str, Branch], gamma: float, init: str) -> None:
    """Set the last gamma of new ``branches``: all to ``gamma``; under ``init="single"`` ``MAIN`` to 1, the others to 0.

    Raises:
        InputError: ``init`` is neither ``"default"`` nor ``"single"``.
    """
    if init not in ("default", "single"):
        raise InputError(f'expected init to be "default" or "single", got {init!r}; choose one of them')
    for name, branch in branches.items():
        nn.init.constant_(branch.norm.weight, float(name == MAIN) if init == "single" else gamma)


def _pointwise(layers: LayerFactory, out_channels: int) -> nn.Conv2d:
    return layers.conv(out_channels=out_channels, kernel_size=1, stride=1, padding=0, dilation=1)


def _layer_kernel_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return kernel and bias, in float64, of a convolution or of a block that replaced it."""
    if isinstance(layer, ReparamBlock):
        return layer.fused_kernel_bias(dtype=torch.float64)
    conv = cast(nn.Conv2d, layer)
    weight = conv.effective_weight() if isinstance(conv, IdentityPlusPointwise) else conv.weight
    return wide(weight), None if conv.bias is None else wide(conv.bias)
