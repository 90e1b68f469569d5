"""The geometry of a convolution, from which a block derives that of its branches."""

from dataclasses import dataclass
from typing import Self, cast

from torch import nn

from backpass._internal.padding import same_padding
from backpass.errors import InputError

__all__ = ["ConvGeometry"]

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
        """Return the geometry of ``conv``; a padding of ``"same"`` or ``"valid"`` becomes numbers.

        >>> ConvGeometry.of(nn.Conv2d(8, 16, 3, padding="same")).padding
        (1, 1)

        Raises:
            InputError: ``padding="same"`` pads one side more than the other (a span of even length).
        """
        kernel_size, dilation = cast(Pair, conv.kernel_size), cast(Pair, conv.dilation)
        rows, columns = same_padding(kernel_size, dilation)
        if conv.padding == "same" and (rows[0] != rows[1] or columns[0] != columns[1]):
            raise InputError(
                "expected padding that is equal on both sides, got padding='same' with "
                f"kernel_size={kernel_size} and dilation={dilation}, which pads one side more than the other; give the "
                "padding as numbers"
            )
        words = {"same": (rows[0], columns[0]), "valid": (0, 0)}
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
        """Return the padding with which a smaller kernel sees the same pixels as the centre of the whole one.

        ``p - d * (k - k_small) / 2`` per axis; a negative margin is a crop of the input.
        """
        rows, columns = (
            p - d * (k - small) // 2
            for p, d, k, small in zip(self.padding, self.dilation, self.kernel_size, kernel_size, strict=True)
        )
        return rows, columns

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
