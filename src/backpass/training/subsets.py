"""Data sets with training items held out for validation, and with fewer items."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from backpass.errors import InputError

__all__ = ["complement", "reduce_data"]

_Data = TypeVar("_Data", bound=Any)


def reduce_data(
    data: _Data,
    validation: float,
    limit_train: int | None,
    limit_test: int | None,
    draw: Callable[[Any, int], Tensor],
    select: Callable[[Any, Tensor], Any],
) -> _Data:
    """Return a data set with training items held out for validation, and then with fewer items.

    Args:
        data: a dataclass with the splits ``train``, ``test`` and ``validation``.
        validation: fraction of the training items to hold out.
        limit_train: number of training items to keep; ``None``: all.
        limit_test: number of test items to keep; ``None``: all.
        draw: returns the ascending indices of a number of items drawn from a split.
        select: returns the part of a split at some indices.

    Raises:
        InputError: nothing would be left of a split, the fraction is outside [0, 1), or a limit is above the number of
            items.
    """
    train, held_out = data.train, data.validation
    count = _held_out_count(len(train), validation)
    if count:
        chosen = draw(train, count)
        train, held_out = select(train, complement(chosen, len(train))), select(train, chosen)

    def limited(split: Any, limit: int | None, argument: str, note: str = "") -> Any:
        if limit is None:
            return split
        if not 1 <= limit <= len(split):
            raise InputError(
                f"expected 1 <= {argument} <= {len(split)}, the number of items in the split{note}, got {limit}; set "
                "it to None to keep all"
            )
        return select(split, draw(split, limit))

    without = f" without the {count} held out for validation" if count else ""
    return replace(
        data,
        train=limited(train, limit_train, "limit_train", without),
        test=limited(data.test, limit_test, "limit_test"),
        validation=held_out,
    )


def complement(chosen: Tensor, total: int) -> Tensor:
    """Return the ascending indices below ``total`` that are not chosen.

    >>> complement(torch.tensor([1, 2]), 5)
    tensor([0, 3, 4])
    """
    outside = torch.ones(total, dtype=torch.bool)
    outside[chosen] = False
    return outside.nonzero().squeeze(1)


def _held_out_count(total: int, fraction: float) -> int:
    """Return how many of ``total`` training items a fraction holds out; 0 for a fraction of 0."""
    if not 0 <= fraction < 1:
        raise InputError(f"expected 0 <= split_validation < 1, got {fraction}; give a fraction of the training items")
    count = round(fraction * total)
    if fraction > 0 and not 0 < count < total:
        raise InputError(
            f"expected at least one item for training and one for validation, got {total - count} and {count} with "
            f"split_validation={fraction} of {total} items; change split_validation"
        )
    return count
