"""Computing in float32 as it is, on GPUs that would round its factors to TF32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["full_float32"]


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute convolutions and matrix products on CUDA in full float32 in a ``with`` block.

    Convolutions use TF32 by default, whose ten bits of mantissa make two forms of one network differ by more than the
    rounding of float32.
    """
    convolutions: Any = torch.backends.cudnn
    products: Any = torch.backends.cuda.matmul
    settings: list[tuple[Any, str, Any]]
    if hasattr(products, "fp32_precision"):  # from torch 2.9 on, where the older flags may not be mixed with it
        settings = [(holder, "fp32_precision", "ieee") for holder in (convolutions.conv, products)]
    else:
        settings = [(convolutions, "allow_tf32", False), (products, "allow_tf32", False)]
    before = [getattr(holder, name) for holder, name, _ in settings]
    try:
        for holder, name, value in settings:
            setattr(holder, name, value)
        yield
    finally:
        for (holder, name, _), value in zip(settings, before, strict=True):
            setattr(holder, name, value)
