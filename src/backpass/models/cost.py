"""What a model costs: its parameters, and the multiply-accumulates of one forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from backpass._internal.batches import map_tensors
from backpass._internal.eager import eagerly
from backpass._internal.modes import eval_mode
from backpass._internal.wrappers import unwrap
from backpass.errors import InputError

__all__ = ["count_macs", "count_parameters"]


def count_parameters(model: nn.Module) -> int:
    """Return the number of scalars in the parameters of ``model``, a shared parameter once, buffers left out.

    >>> count_parameters(nn.Conv2d(3, 8, kernel_size=3))
    224
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_size: Sequence[int] | None = None, *, example: Any = None) -> int:
    """Return the multiply-accumulates (MACs) of the convolutions and linear layers for one example.

    Counted by ``torch.utils.flop_counter``, two floating point operations a MAC: a convolution costs
    ``k_h * k_w * C_in / groups`` MACs for each element of its output, zero padding included; a linear layer
    ``in_features`` for each element of its output; a matrix product likewise. Biases, normalisation, activations,
    pooling and additions are not counted. This is the convention of the tables of the SGS and DyRep papers, which
    print MACs as FLOPs.

    The model runs once, on zeros or ``example``, in eval mode and without gradients, on the device and in the dtype of
    its first parameter; a compiled model runs eagerly. Mode and hooks are restored, also after an error. On
    ``torch.device("meta")`` nothing is computed, so that counting costs next to nothing.

    Args:
        model: takes one tensor of shape ``(1, *input_size)``, or ``example``.
        input_size: shape of one example without the batch axis, such as ``(3, 32, 32)``.
        example: the input of one example instead, with its batch axis: a tensor, or a tuple, list or dictionary of
            tensors. All are moved to the device of the model, and those of floating-point numbers to its dtype.

    Raises:
        InputError: ``input_size`` holds anything but positive integers, or is given with ``example``.

    >>> count_macs(nn.Conv2d(3, 8, kernel_size=3, padding=1), (3, 32, 32))  # 3 * 3 * 3 * 8 * 32 * 32
    221184
    """
    like = next(model.parameters(), torch.empty(0))
    if example is not None and input_size is not None:
        raise InputError(f"expected input_size or example, got both (input_size={input_size!r}); leave one out")
    if example is None:
        example = _zeros(input_size or (), like)
    else:
        example = map_tensors(lambda tensor: tensor.to(like if tensor.is_floating_point() else like.device), example)
    plain = unwrap(model)
    with eval_mode(plain), torch.no_grad(), eagerly(), _unfused(), FlopCounterMode(display=False) as counter:
        plain(example)
    return int(counter.get_total_flops()) // 2


@contextmanager
def _unfused() -> Iterator[None]:
    """Let attention run layer by layer, since the counter does not know its fused kernel of eval mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _zeros(input_size: Sequence[int], like: Tensor) -> Tensor:
    if not input_size or not all(isinstance(size, int) and size > 0 for size in input_size):
        raise InputError(
            "expected input_size to be the positive integers (channels, height, width) of one example without the "
            f"batch axis, got {tuple(input_size)}; "
            "give three of them"
        )
    return torch.zeros(1, *input_size, device=like.device, dtype=like.dtype)
