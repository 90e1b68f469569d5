"""Making the layers of a block: convolutions of one geometry, and normalisations like a given one."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import nn

from backpass.reparam.blocks.batch_norm import BatchNorm
from backpass.reparam.blocks.geometry import ConvGeometry

__all__ = ["LayerFactory"]


@dataclass(frozen=True)
class LayerFactory:
    """Makes the layers of a block.

    Attributes:
        geometry: of the convolution that the block replaces.
        replaced: the normalisation that the block replaces, or ``None``.
        device: of the convolutions' parameters.
        dtype: of the convolutions' parameters.
    """

    geometry: ConvGeometry
    replaced: BatchNorm | None
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def like(cls, conv: nn.Conv2d, norm: BatchNorm | None) -> Self:
        """Return the factory of layers like ``conv`` and ``norm`` (PyTorch's defaults if ``None``)."""
        return cls(ConvGeometry.of(conv), norm, conv.weight.device, conv.weight.dtype)

    def conv(self, *, bias: bool = False, **changes: Any) -> nn.Conv2d:
        """Return a new ``nn.Conv2d`` of the geometry, with ``changes`` to its arguments."""
        arguments = asdict(self.geometry) | changes
        return nn.Conv2d(**arguments, bias=bias, device=self.device, dtype=self.dtype)

    def norm(self, channels: int) -> BatchNorm:
        """Return a new normalisation, gamma 1 and beta 0.

        Type, epsilon, momentum, device, dtype and, of a synchronised one, process group are those of ``replaced``.
        """
        norm = self.replaced
        if norm is None:
            return nn.BatchNorm2d(channels, device=self.device, dtype=self.dtype)
        arguments: dict[str, Any] = {"device": norm.weight.device, "dtype": norm.weight.dtype}
        if isinstance(norm, nn.SyncBatchNorm):
            arguments["process_group"] = norm.process_group
        return type(norm)(channels, norm.eps, norm.momentum, **arguments)
