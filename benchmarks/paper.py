"""The published cost of whole runs relative to plain training: GPU hours of SGS Table 1."""

from backpass.experiments import get_table

__all__ = ["RELATIVE_TIME"]


def _relative_time(data: str) -> dict[str, float]:
    """Return the GPU hours of each method over those of plain training, for the runs that the paper made itself."""
    hours = {
        entry.method: entry.published.cost
        for entry in get_table("sgs-table-1").entries
        if entry.recipe is not None and entry.recipe.data.name == data
        if entry.published is not None and entry.published.cost is not None
    }
    plain = hours.pop("plain")
    return {method: cost / plain for method, cost in hours.items()}


# VGG-16 on CIFAR-10, by name of the model.
RELATIVE_TIME: dict[str, dict[str, float]] = {"vgg16_small": _relative_time("cifar10")}
