"""The base of every branched block: parallel branches in training, one convolution afterwards."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.reparam.blocks.algebra import KernelBias, embed_kernel, sum_parallel
from backpass.reparam.blocks.batch_norm import BatchNorm, unsuitable_norm
from backpass.reparam.blocks.geometry import ConvGeometry
from backpass.reparam.blocks.layers import LayerFactory

__all__ = ["MAIN", "Branch", "ReparamBlock"]

MAIN = "kxk"
"""Name of the branch that every block has: the convolution that the block replaces, and its normalisation."""


class Branch(nn.Module, ABC):
    """One branch of a block: layers that end in a normalisation and equal one convolution in eval mode."""

    norm: BatchNorm
    """The last normalisation; its gamma is the weight of the branch."""

    @abstractmethod
    def kernel_bias(self) -> KernelBias:
        """Return the branch's kernel (no larger than the block's) and bias in float64."""


class ReparamBlock(nn.Module):
    """A sum of branches that :func:`backpass.reparam.fuse` turns into one ``nn.Conv2d``.

    In eval mode the block is a convolution with a bias; in train mode each branch normalises with the
    statistics of its batch. There is no activation inside. Subclasses choose the branches; the branch ``MAIN``
    takes over the weight of the convolution and the normalisation that the block replaces, so their parameters
    stay the same objects. Parameters are named ``branches.NAME...``.

    Attributes:
        name: what :func:`backpass.reparam.reparameterize` calls this kind of block.
        geometry: the convolution that the block amounts to. Its fields, ``in_channels`` to ``padding_mode``, are
            attributes of the block too, for code that reads them of a convolution.
        branches: the branches by name.
        had_bias: whether the replaced convolution had a bias.
        absorbed: the module that replaces the normalisation that the block took over (in a tuple, so that it is no
            submodule); empty if there was none.
    """

    name: ClassVar[str]

    def __init__(
        self, conv: nn.Conv2d, norm: BatchNorm | None, layers: LayerFactory, branches: Mapping[str, Branch]
    ) -> None:
        super().__init__()
        self.geometry: ConvGeometry = layers.geometry
        vars(self).update(asdict(self.geometry))
        self.branches = nn.ModuleDict(branches)
        self.had_bias = conv.bias is not None
        self.absorbed: tuple[nn.Module, ...] = ()
        self._adopt(conv, norm)
        if _is_channels_last(conv.weight):
            self.to(memory_format=torch.channels_last)
        self.train(conv.training)

    @classmethod
    def unsuitable(cls, geometry: ConvGeometry) -> str | None:
        """Return why this kind of block cannot replace a convolution of ``geometry``; ``None`` if it can.

        Every kind needs a square kernel with a centre; subclasses add what else they need.
        """
        rows, columns = geometry.kernel_size
        if rows != columns or rows % 2 == 0 or rows == 1:
            return f"its kernel must be square, odd and above 1, got {geometry.kernel_size}"
        return None

    @classmethod
    def layers(cls, conv: nn.Conv2d, norm: BatchNorm | None) -> LayerFactory:
        """Return the factory of this block's layers.

        Raises:
            InputError: this kind of block cannot replace ``conv`` or take over ``norm``.
        """
        if norm is not None and (reason := unsuitable_norm(norm)):
            raise InputError(
                f"expected a normalisation that {cls.__name__} can take over, got {norm}: {reason}; leave both layers "
                "plain"
            )
        layers = LayerFactory.like(conv, norm)
        if reason := cls.unsuitable(layers.geometry):
            raise InputError(
                f"expected a convolution that {cls.__name__} can replace, got {conv}: {reason}; leave it plain"
            )
        return layers

    def structure(self) -> dict[str, Any]:
        """Return the options of the constructor that decide which branches exist, as plain data."""
        return {}

    def items(self) -> Iterator[tuple[str, Branch]]:
        """Iterate over names and branches."""
        return cast(Iterator[tuple[str, Branch]], iter(self.branches.items()))

    @property
    def main(self) -> Branch:
        """The branch ``MAIN``."""
        return cast(Branch, self.branches[MAIN])

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the branches, shape ``(N, C_out, H', W')`` for ``x`` of ``(N, C_in, H, W)``."""
        first, *others = self.branches.values()
        out = cast(Tensor, first(x))
        for branch in others:
            out = out + branch(x)
        return out

    def fused_kernel_bias(self, *, without: Collection[str] = (), dtype: torch.dtype | None = None) -> KernelBias:
        """Return kernel and bias of the convolution that the block equals in eval mode (T1 to T6).

        Computed in float64, and differentiable with respect to the parameters of every branch.

        Args:
            without: names of branches to leave out.
            dtype: dtype of the result, by default that of the block's own kernels.

        Returns:
            Kernel ``(C_out, C_in/groups, k_h, k_w)`` and bias ``(C_out,)``.
        """
        reference = self._largest_kernel()
        pairs = [branch.kernel_bias() for name, branch in self.items() if name not in without]
        kernel, bias = sum_parallel((embed_kernel(k, self.geometry.kernel_size), b) for k, b in pairs)
        if dtype == torch.float64:
            return kernel, bias
        dtype = dtype or reference.dtype
        return kernel.to(dtype).to(reference.device), bias.to(dtype).to(reference.device)

    @torch.no_grad()
    def to_conv(self) -> nn.Conv2d:
        """Return the plain ``nn.Conv2d`` with bias that equals the block in eval mode.

        It keeps stride, padding, dilation, groups, padding mode, dtype, device, memory format and mode.
        """
        kernel, bias = self.fused_kernel_bias()
        conv = nn.Conv2d(**asdict(self.geometry), bias=True, device=kernel.device, dtype=kernel.dtype)
        conv.weight.copy_(kernel)
        cast(nn.Parameter, conv.bias).copy_(bias)
        if _is_channels_last(self._largest_kernel()):
            conv.to(memory_format=torch.channels_last)
        return conv.train(self.training)

    def _adopt(self, conv: nn.Conv2d, norm: BatchNorm | None) -> None:
        """Give the main branch the weight and the bias of ``conv`` and take over ``norm``, keeping their function.

        Every branch's last gamma is multiplied by that of ``norm``, so that a residual initialised to zero
        stays zero, and an untrained ``norm`` (gamma 1) changes nothing.
        """
        layer = cast(nn.Conv2d, self.main.conv)
        layer.weight = conv.weight
        if layer.bias is not None and conv.bias is not None:
            layer.bias = conv.bias
        elif layer.bias is not None:
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            if norm is not None:
                gamma = norm.weight.clone()
                for _, branch in self.items():
                    branch.norm.weight.mul_(gamma)
                norm.weight.copy_(self.main.norm.weight)
                norm.bias.add_(self.main.norm.bias)
                self.main.norm = norm
            if conv.bias is not None and layer.bias is None:
                cast(Tensor, self.main.norm.running_mean).sub_(conv.bias)

    def _largest_kernel(self) -> Tensor:
        return max((p for p in self.parameters() if p.ndim == 4), key=Tensor.numel)


def _is_channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
