"""Checks of the losses' arguments, with errors that say what to change."""

import math
import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from backpass.errors import InputError

__all__ = [
    "CrossEntropyOptions",
    "check_alpha",
    "check_binary_cross_entropy",
    "check_cross_entropy",
    "check_label_smoothing",
    "check_reduction",
]

_REDUCTIONS = ("none", "mean", "sum")


class CrossEntropyOptions(NamedTuple):
    """The options of ``F.cross_entropy`` that are no tensors."""

    ignore_index: int
    reduction: str
    label_smoothing: float


def check_alpha(alpha: object) -> float:
    """Return ``alpha`` as a float, or raise an InputError if it is not a finite number above 0."""
    if type(alpha) is float and 0 < alpha < math.inf:  # without the search through the number classes below
        return alpha
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real) or not 0 < float(alpha) < math.inf:
        raise InputError(
            f"expected alpha to be a finite number above 0, got {alpha!r}; the published values are 0.25 and 0.3, "
            "and alpha=1.0 is plain cross-entropy"
        )
    return float(alpha)


def check_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None, options: CrossEntropyOptions) -> None:
    """Raise an InputError that names the first argument that does not fit the others."""
    check_reduction(options.reduction)
    check_label_smoothing(options.label_smoothing)
    _check_logits(input)
    if input.ndim == 0:
        raise InputError("expected input of shape (C,), (N, C) or (N, C, d1, ...), got a scalar; add the class axis")
    class_dim = 0 if input.ndim == 1 else 1
    classes = input.shape[class_dim]
    if weight is not None and weight.shape != (classes,):
        raise InputError(
            f"expected weight to hold one value for each class, shape ({classes},), got {tuple(weight.shape)} "
            f"for input of shape {tuple(input.shape)}; "
            "give a weight for each class, or leave weight out"
        )
    if target.shape == input.shape:
        _check_probabilities(target, options.ignore_index)
    else:
        _check_labels(input, target, class_dim, options.ignore_index)


def _check_probabilities(target: Tensor, ignore_index: int) -> None:
    if not target.is_floating_point():
        raise InputError(
            f"expected a target of the shape of input, {tuple(target.shape)}, to hold class probabilities in "
            f"floating point, got {target.dtype}; call .float() on one-hot rows, or drop the class axis of indices"
        )
    if ignore_index >= 0:
        raise InputError(
            f"expected class indices with ignore_index={ignore_index}, got class probabilities of shape "
            f"{tuple(target.shape)}; give ignored samples a target of zeros instead"
        )


def _check_labels(input: Tensor, target: Tensor, class_dim: int, ignore_index: int) -> None:
    label_shape = input.shape[:class_dim] + input.shape[class_dim + 1 :]
    if target.shape != label_shape:
        raise InputError(
            f"expected target to hold class indices of shape {tuple(label_shape)} or class probabilities of shape "
            f"{tuple(input.shape)}, that of input, got shape {tuple(target.shape)}; "
            "reshape the target"
        )
    if target.dtype not in (torch.int64, torch.uint8):
        raise InputError(f"expected class indices in torch.int64, got {target.dtype}; call target.long()")
    classes = input.shape[class_dim]
    outside = target[(target != ignore_index) & ((target < 0) | (target >= classes))]
    if outside.numel():
        raise InputError(
            f"expected target to hold class indices from 0 to {classes - 1} (the logits have {classes} classes) or "
            f"ignore_index={ignore_index}, got {sorted(set(outside.tolist()))}; "
            "check the number of outputs of the last layer and the numbering of the labels"
        )


def _check_logits(input: Tensor) -> None:
    """Raise an InputError if the logits are not floating point."""
    if not input.is_floating_point():
        raise InputError(
            f"expected input to hold floating-point logits, got {input.dtype} of shape {tuple(input.shape)}; "
            "pass the unnormalised scores of the model, not predicted classes"
        )


def check_reduction(reduction: str) -> None:
    """Raise an InputError if ``reduction`` is none of PyTorch's."""
    if reduction not in _REDUCTIONS:
        raise InputError(
            f"expected reduction to be one of {', '.join(map(repr, _REDUCTIONS))}, got {reduction!r}; "
            "choose one of them"
        )


def check_label_smoothing(label_smoothing: float) -> None:
    """Raise an InputError if ``label_smoothing`` is not in [0, 1]."""
    if not 0 <= label_smoothing <= 1:
        raise InputError(f"expected label_smoothing between 0 and 1, got {label_smoothing}; 0 switches it off")


def check_binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, pos_weight: Tensor | None
) -> None:
    """Raise an InputError that names the first argument that does not fit the others."""
    check_reduction(reduction)
    _check_logits(input)
    if target.shape != input.shape:
        raise InputError(
            f"expected target of the shape of input, {tuple(input.shape)}, got {tuple(target.shape)}; "
            "unsqueeze or one-hot encode the target so that each logit has its own"
        )
    if not target.is_floating_point():
        raise InputError(
            f"expected target to hold probabilities in floating point, got {target.dtype}; call target.float()"
        )
    for name, factor in (("weight", weight), ("pos_weight", pos_weight)):
        if factor is not None and not _broadcasts_to(factor.shape, input.shape):
            raise InputError(
                f"expected {name} to broadcast to the shape of input, {tuple(input.shape)}, got {tuple(factor.shape)}; "
                "reshape it"
            )


def _broadcasts_to(shape: torch.Size, wanted: torch.Size) -> bool:
    if len(shape) > len(wanted):
        return False
    return all(size in (1, want) for size, want in zip(shape, wanted[len(wanted) - len(shape) :], strict=True))
