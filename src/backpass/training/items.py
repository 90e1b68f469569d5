"""Data sets of any kind of item: what is no image with one class, and the user's own."""

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from backpass._internal.imports import call_object
from backpass.errors import InputError
from backpass.training.images import ImageData
from backpass.training.subsets import reduce_data

__all__ = ["Data", "ItemData", "call_data_function"]


@dataclass(frozen=True, eq=False)
class ItemData:
    """A data set whose splits are map-style data sets of PyTorch; the task makes an example of each item.

    A split has a length and returns item ``i`` as ``split[i]``: for a task that does not override
    :meth:`~backpass.training.task.Task.prepare`, a pair of an input and a target, each a tensor or a tuple, list or
    dictionary of tensors. Random transforms may draw from the global generators of torch (on the CPU), ``random`` and
    NumPy, which the loader seeds for each item. A generator that an object owns, such as
    ``numpy.random.default_rng()``, is not seeded: with one, the items depend on the number of workers, and a resumed
    run has others. Items are read in worker processes, so that splits have to survive pickling.

    Attributes:
        label: name of the data set in reports.
        train: training items.
        test: test items.
        num_classes: number of classes, key points or other outputs, with which the model is created.
        input_size: shape of the model's input for one example, such as channels, height and width. The first is the
            number of channels with which the model is created.
        validation: items held out of the training items, if any.

    Raises:
        InputError: a split is empty or has no length, or a number is not positive.
    """

    label: str
    train: Dataset[Any]
    test: Dataset[Any]
    num_classes: int
    input_size: tuple[int, ...]
    validation: Dataset[Any] | None = None

    def __post_init__(self) -> None:
        for name, split in (("train", self.train), ("test", self.test), ("validation", self.validation)):
            if split is not None and not (isinstance(split, Sized) and len(split)):
                found = "none" if isinstance(split, Sized) else f"{type(split).__name__}, which has no length"
                raise InputError(f"expected items in the {name} split of {self.label}, got {found}; add items")
        if self.num_classes < 1 or not self.input_size or min(self.input_size) < 1:
            raise InputError(
                f"expected num_classes and every size in input_size of {self.label} to be at least 1, got "
                f"{self.num_classes} and {self.input_size}; correct them"
            )

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.input_size[0]

    def reduced(self, validation: float, limit_train: int | None, limit_test: int | None, seed: int) -> Self:
        """Return the data set with training items held out for validation, and then with fewer items.

        Args:
            validation: fraction of the training items to hold out.
            limit_train: number of training items to keep; default: all.
            limit_test: number of test items to keep; default: all.
            seed: seed of the subsets, which are drawn at random.

        Raises:
            InputError: nothing would be left of a split, or a limit is above the number of items.
        """

        def draw(split: Any, count: int) -> Tensor:
            order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
            return order[:count].sort().values

        def select(split: Any, indices: Tensor) -> Subset[Any]:
            return Subset(split, indices.tolist())

        return reduce_data(self, validation, limit_train, limit_test, draw, select)


Data = ImageData | ItemData
"""What a model is trained and evaluated on."""


def call_data_function(path: str, arguments: Mapping[str, Any]) -> Data:
    """Return the data set that a function of the user's own makes.

    Args:
        path: import path of the function, ``package.module:function``.
        arguments: of the function.

    Raises:
        InputError: there is no such function, it does not take the arguments, or returns something else.
    """
    data = call_object(path, "data set", arguments)
    if not isinstance(data, ImageData | ItemData):
        raise InputError(
            f"expected {path!r} to return a backpass.training.ItemData or ImageData, got {type(data).__name__}; wrap "
            "training and test items in one"
        )
    return data
