"""What a branched block must know of the convolution that it replaces, and how it makes layers like it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

import torch
from torch import nn

from backpass.errors import InputError

__all__ = ["BatchNorm", "ConvGeometry", "LayerFactory"]

BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm

Pair = tuple[int, int]


@dataclass(frozen=True)
class ConvGeometry:
    """The arguments of an ``nn.Conv2d``, without its weights and its bias; all sizes are (rows, columns)."""

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    padding_mode: str

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Self:
        """Return the geometry of ``conv``; padding given as a word becomes numbers.

        >>> ConvGeometry.of(nn.Conv2d(8, 16, 3, padding="same")).padding
        (1, 1)

        Raises:
            InputError: ``padding="same"`` pads one side more than the other (a span of even length).
        """
        kernel_size, dilation = cast(Pair, conv.kernel_size), cast(Pair, conv.dilation)
        spans = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
        if conv.padding == "same" and any(span % 2 for span in spans):
            raise InputError(
                f"padding='same' with kernel_size={kernel_size} and dilation={dilation} pads one side more than "
                "the other; give the padding as numbers."
            )
        words = {"same": (spans[0] // 2, spans[1] // 2), "valid": (0, 0)}
        padding = words[conv.padding] if isinstance(conv.padding, str) else cast(Pair, conv.padding)
        return cls(
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            kernel_size=kernel_size,
            stride=cast(Pair, conv.stride),
            padding=padding,
            dilation=dilation,
            groups=conv.groups,
            padding_mode=conv.padding_mode,
        )

    def margins(self, kernel_size: Pair) -> Pair:
        """Return the padding with which a smaller kernel meets the same pixels as the centre of the whole one.

        ``p - d * (k - k_small) / 2`` per axis; a negative margin is a crop of the input.
        """
        rows, columns = (
            p - d * (k - small) // 2
            for p, d, k, small in zip(self.padding, self.dilation, self.kernel_size, kernel_size, strict=True)
        )
        return rows, columns

    @property
    def square_odd(self) -> bool:
        """Whether the kernel is square and has a centre."""
        return self.kernel_size[0] == self.kernel_size[1] and self.kernel_size[0] % 2 == 1

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved with itself alone."""
        return self.groups == self.in_channels == self.out_channels

    @property
    def centred(self) -> bool:
        """Whether the padding is ``d * (k // 2)``, so that a 1x1 convolution needs none."""
        return self.margins((1, 1)) == (0, 0)

    @property
    def keeps_shape(self) -> bool:
        """Whether output and input have one shape, so that an identity branch fits."""
        return self.centred and self.in_channels == self.out_channels and self.stride == (1, 1)


@dataclass(frozen=True)
class LayerFactory:
    """Makes the layers of a block: convolutions of one geometry, and normalisations like a given one."""

    geometry: ConvGeometry
    make_norm: Callable[..., BatchNorm]
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def like(cls, conv: nn.Conv2d, norm: BatchNorm | None) -> Self:
        """Return the factory of layers like ``conv`` and ``norm`` (library defaults if ``None``)."""
        device, dtype = conv.weight.device, conv.weight.dtype
        if norm is None:
            return cls(ConvGeometry.of(conv), _norms(nn.BatchNorm2d, device=device, dtype=dtype), device, dtype)
        arguments = {"eps": norm.eps, "momentum": norm.momentum, "device": norm.weight.device}
        if isinstance(norm, nn.SyncBatchNorm):
            arguments["process_group"] = norm.process_group
        norms = _norms(type(norm), **arguments, dtype=norm.weight.dtype)
        return cls(ConvGeometry.of(conv), norms, device, dtype)

    def conv(self, *, bias: bool = False, **changes: Any) -> nn.Conv2d:
        """Return a new ``nn.Conv2d`` of the geometry, ``changes`` replacing its arguments."""
        arguments = asdict(self.geometry) | changes
        return nn.Conv2d(**arguments, bias=bias, device=self.device, dtype=self.dtype)

    def norm(self, channels: int) -> BatchNorm:
        """Return a new normalisation of ``channels`` channels, gamma 1 and beta 0."""
        return self.make_norm(channels)


def _norms(kind: type[BatchNorm], **arguments: Any) -> Callable[..., BatchNorm]:
    def make(channels: int) -> BatchNorm:
        return kind(channels, **arguments)

    return make
