"""How many items of a split are held out or kept, checked."""

from backpass.errors import InputError

__all__ = ["check_limit", "held_out_count"]


def held_out_count(total: int, fraction: float) -> int:
    """Return how many of ``total`` training items a fraction holds out for validation; 0 for a fraction of 0.

    Raises:
        InputError: the fraction is outside [0, 1), or no item would be left on one side.

    >>> held_out_count(50, 0.1)
    5
    """
    if not 0 <= fraction < 1:
        raise InputError(f"expected 0 <= split_validation < 1, got {fraction}; give a fraction of the training items")
    count = round(fraction * total)
    if fraction > 0 and not 0 < count < total:
        raise InputError(
            f"expected at least one item for training and one for validation, got {total - count} and {count} with "
            f"split_validation={fraction} of {total} items; change split_validation"
        )
    return count


def check_limit(limit: int | None, total: int, argument: str, held_out: int = 0) -> None:
    """Raise :class:`InputError` unless a limit is ``None`` or a number of items that the split has.

    Args:
        limit: number of items to keep.
        total: number of items of the split, without those held out.
        argument: name of the limit.
        held_out: number of items held out for validation.
    """
    if limit is not None and not 1 <= limit <= total:
        split = f"the split without the {held_out} held out for validation" if held_out else "the split"
        raise InputError(
            f"expected 1 <= {argument} <= {total}, the number of items in {split}, got {limit}; set it to None to "
            "keep all"
        )
