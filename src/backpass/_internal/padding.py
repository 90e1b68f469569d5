"""Padding given as a word."""

from collections.abc import Sequence

__all__ = ["same_padding"]


def same_padding(kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return the pixels that ``padding="same"`` adds before and after each axis; an odd one goes after.

    >>> same_padding((3, 4), (1, 1))
    ((1, 1), (1, 2))
    """
    totals = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)
