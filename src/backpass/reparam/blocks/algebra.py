"""The linear algebra that turns a branched block into one convolution: rules T2 to T6, and T1 in ``batch_norm.fold``.

Every function maps kernels of shape ``(C_out, C_in/groups, k_h, k_w)`` and biases of shape ``(C_out,)`` to
kernels and biases, keeps dtype and device, and is differentiable. Rules T1 to T6 are the transforms of
Ding et al., "Diverse Branch Block", CVPR 2021, section 3.2, here for rectangular kernels as well.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from backpass.errors import InputError

__all__ = [
    "KernelBias",
    "average_kernel",
    "chain_pointwise",
    "embed_kernel",
    "identity_kernel",
    "sum_parallel",
]

KernelBias = tuple[Tensor, Tensor]


def sum_parallel(branches: Iterable[KernelBias]) -> KernelBias:
    """Return the convolution that equals the sum of parallel convolutions of one kernel shape (T2)."""
    kernels, biases = zip(*branches, strict=True)
    return torch.stack(kernels).sum(0), torch.stack(biases).sum(0)


def chain_pointwise(kernel1: Tensor, bias1: Tensor, kernel2: Tensor, bias2: Tensor, groups: int = 1) -> KernelBias:
    """Return the convolution that equals a 1x1 convolution followed by a k x k one (T3; T4 for groups).

    ``K[o, i] = sum_m K2[o, m] * K1[m, i]`` and ``b[o] = b2[o] + sum_{m,h,w} K2[o, m, h, w] * b1[m]``, group by
    group. With zero padding this holds only if the padding is applied between the two and filled with
    ``bias1``, which is what :class:`backpass.reparam.blocks.branches.BatchNormAndPad` does.

    Args:
        kernel1: shape ``(C_mid, C_in/groups, 1, 1)``.
        bias1: shape ``(C_mid,)``.
        kernel2: shape ``(C_out, C_mid/groups, k_h, k_w)``.
        bias2: shape ``(C_out,)``.
        groups: the groups of both convolutions.

    Returns:
        Kernel ``(C_out, C_in/groups, k_h, k_w)`` and bias ``(C_out,)``.
    """
    in_per_group = kernel1.shape[1]
    out, mid_per_group, *taps = kernel2.shape
    k1 = kernel1.reshape(groups, mid_per_group, in_per_group)
    k2 = kernel2.reshape(groups, out // groups, mid_per_group, *taps)
    kernel = torch.einsum("gomhw,gmi->goihw", k2, k1).reshape(out, in_per_group, *taps)
    bias = torch.einsum("gomhw,gm->go", k2, bias1.reshape(groups, mid_per_group)).reshape(out)
    return kernel, bias2 + bias


def average_kernel(
    channels: int, kernel_size: tuple[int, int], groups: int, *, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """Return the kernel of average pooling written as a convolution (T5); its bias is zero.

    ``K[c, c mod (channels/groups)] = 1 / (k_h * k_w)`` at every tap, zero elsewhere; shape
    ``(channels, channels/groups, k_h, k_w)``. It is exact where the pooling counts padded zeros.
    """
    identity = identity_kernel(channels, groups, dtype=dtype, device=device)
    return identity.expand(-1, -1, *kernel_size) / (kernel_size[0] * kernel_size[1])


def identity_kernel(channels: int, groups: int, *, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Return the 1x1 kernel of the identity: one at ``K[c, c mod (channels/groups)]``, else zero."""
    return torch.eye(channels // groups, dtype=dtype, device=device).repeat(groups, 1)[:, :, None, None]


def embed_kernel(kernel: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return ``kernel`` zero-padded around its centre to ``kernel_size`` (T6).

    >>> embed_kernel(torch.ones(1, 1, 3, 1), (3, 5))[0, 0].tolist()
    [[0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]]

    Raises:
        InputError: an axis would shrink, or grow by an odd number of taps, which has no centre.
    """
    rows, columns = (big - small for big, small in zip(kernel_size, kernel.shape[-2:], strict=True))
    if min(rows, columns) < 0 or rows % 2 or columns % 2:
        raise InputError(
            "expected each axis to grow by an even number of taps, got a kernel of "
            f"{kernel.shape[-2]}x{kernel.shape[-1]} for {kernel_size[0]}x{kernel_size[1]}, where it has no centred "
            "position; choose another size"
        )
    return torch.nn.functional.pad(kernel, (columns // 2, columns // 2, rows // 2, rows // 2))
