"""Making the layers of a block: convolutions of one geometry, and normalisations like a given one."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import nn

from backpass.reparam.blocks.batch_norm import BatchNorm, norms_like
from backpass.reparam.blocks.geometry import ConvGeometry

__all__ = ["LayerFactory"]


@dataclass(frozen=True)
class LayerFactory:
    """Makes the layers of a block.

    Attributes:
        geometry: of the convolution that the block replaces.
        norm: makes a normalisation for a number of channels.
        device: of the convolutions' parameters.
        dtype: of the convolutions' parameters.
    """

    geometry: ConvGeometry
    norm: Callable[[int], BatchNorm]
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def like(cls, conv: nn.Conv2d, norm: BatchNorm | None) -> Self:
        """Return the factory of layers like ``conv`` and ``norm`` (PyTorch's defaults if ``None``)."""
        device, dtype = conv.weight.device, conv.weight.dtype
        return cls(ConvGeometry.of(conv), norms_like(norm, device, dtype), device, dtype)

    def conv(self, *, bias: bool = False, **changes: Any) -> nn.Conv2d:
        """Return a new ``nn.Conv2d`` of the geometry, with ``changes`` to its arguments."""
        arguments = asdict(self.geometry) | changes
        return nn.Conv2d(**arguments, bias=bias, device=self.device, dtype=self.dtype)
