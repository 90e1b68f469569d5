"""Persons with joints, as every data set of them is read, and what their readers share."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from backpass._internal.imports import import_lab
from backpass.errors import InputError

__all__ = ["REGION_MARGIN", "Person", "PersonItem", "Persons", "PoseTruth", "check_images", "read_matlab"]

REGION_MARGIN = 1.25
"""Side of the region that shows a person over the person's own size, as in both published sources of SGS Table 8."""


class Person(NamedTuple):
    """A person in an image; coordinates count from 0 at the centre of the first pixel.

    Attributes:
        image: path of the image.
        center: x and y of the middle of the region that shows the person.
        side: width and height of this region in pixels.
        joints: x and y of each joint, float32, shape ``(J, 2)``.
        visible: joints that are annotated, bool, shape ``(J,)``.
    """

    image: str
    center: tuple[float, float]
    side: float
    joints: Tensor
    visible: Tensor


class PoseTruth(NamedTuple):
    """Ground truth of an evaluation, for N persons in the order of the annotation, or for one without the first axis.

    Attributes:
        joints: x and y of each joint, counted from 0, float64, shape ``(N, J, 2)``.
        visible: joints that count, bool, shape ``(N, J)``.
        sizes: unit in which distances count, such as :func:`~backpass.training.dense.pose_metrics.head_sizes`, float64,
            shape ``(N,)``.
    """

    joints: Tensor
    visible: Tensor
    sizes: Tensor


class PersonItem(NamedTuple):
    """A person and, where there is one, the ground truth that PCKh or PCK needs."""

    person: Person
    truth: PoseTruth | None = None


class Persons(Dataset[PersonItem]):
    """The persons of a split, each a :class:`PersonItem`; their images are not yet read.

    Args:
        persons: the persons.
        truth: their ground truth, if there is one.
    """

    def __init__(self, persons: Sequence[Person], truth: PoseTruth | None = None) -> None:
        self.persons, self.truth = tuple(persons), truth

    def __len__(self) -> int:
        return len(self.persons)

    def __getitem__(self, index: int) -> PersonItem:
        """Return a person."""
        truth = None if self.truth is None else PoseTruth(*(part[index] for part in self.truth))
        return PersonItem(self.persons[index], truth)


def read_matlab(file: Path, names: Sequence[str]) -> Mapping[str, Any]:
    """Return the variables of a MATLAB file.

    Args:
        file: the file.
        names: variables that it has to hold.

    Raises:
        InputError: the file is missing, cannot be read, or lacks a variable. The message names it.
        MissingExtraError: SciPy is not installed.
    """
    scipy_io = import_lab("scipy.io", "SciPy", "MATLAB files")
    if not file.is_file():
        raise InputError(f"expected the annotation {file}, got none; correct the path")
    try:
        stored: Mapping[str, Any] = scipy_io.loadmat(file)
    except Exception as error:  # A damaged file makes SciPy raise anything, zlib's and struct's errors among them.
        raise InputError(f"expected {file} to be a readable MATLAB file, got {error}; replace the file") from error
    if absent := [name for name in names if name not in stored]:
        held = sorted(name for name in stored if not name.startswith("__"))
        raise InputError(
            f"expected {file} to hold {', '.join(names)}, got {held} without {', '.join(absent)}; replace the file"
        )
    return stored


def check_images(persons: Sequence[Person], annotation: Path) -> None:
    """Raise InputError, which names the first one, if images of an annotation are missing."""
    missing = sorted({person.image for person in persons if not os.path.isfile(person.image)})
    if missing:
        raise InputError(
            f"expected the images of {annotation} in {Path(missing[0]).parent}, got none at {missing[0]} and "
            f"{len(missing) - 1} others; unpack the archive of images there"
        )
