"""The settings of a data set, and arguments of what a recipe names: models, tasks and data sets."""

import math
from dataclasses import dataclass
from typing import Annotated

from backpass._internal.settings import COUNT, Range, check_settings, check_text
from backpass.errors import InputError

__all__ = ["Argument", "DataSettings", "check_arguments"]

_MAX_IMAGE_SIZE = 8192

Argument = bool | int | float | str


@dataclass(frozen=True)
class DataSettings:
    """The images of a run.

    Attributes:
        name: ``digits``, ``cifar10``, ``cifar100``, ``imagenet:PATH``, ``folder:PATH``, ``cityscapes:PATH``,
            ``camvid:PATH``, ``mpii:PATH``, ``lsp:PATH``, or a function of your own by its import path,
            ``package.module:function``.
        args: arguments of ``cityscapes:PATH`` (``ids raw`` or ``ids train``), ``camvid:PATH`` (``test val``),
            ``lsp:PATH`` (``held_out 1000``) or of your own function, names and values in turn: ``--data.args ids
            train``; in Python ``(("ids", "train"),)``. Kept sorted by name.
        root: folder that holds the files, for a name without a path; default: ``data``, for CIFAR.
        download: download ``cifar10`` or ``cifar100`` if it is missing.
        validation: fraction of the training images that is held out and evaluated instead of the test images.
        limit_train: number of training images, a stratified subset drawn with a fixed seed; default: all.
        limit_test: number of test images, a stratified subset drawn with a fixed seed; default: all.
        label: name of the data set in results; default: its own.
        image_size: side in pixels to which streamed images of ``imagenet:PATH`` and ``folder:PATH`` are cropped;
            default: 224 for ImageNet, and images of a folder are held in memory in their own size.

    Raises:
        InputError: a setting is out of range.
    """

    name: str = "digits"
    args: tuple[tuple[str, Argument], ...] = ()
    root: str | None = None
    download: bool = False
    validation: Annotated[float, Range(at_least=0, below=1)] = 0.0
    limit_train: Annotated[int, COUNT] | None = None
    limit_test: Annotated[int, COUNT] | None = None
    label: str | None = None
    image_size: Annotated[int, Range(at_least=1, at_most=_MAX_IMAGE_SIZE)] | None = None

    def __post_init__(self) -> None:
        """Check the range of every setting; sort the arguments."""
        check_settings(self, "data")
        object.__setattr__(self, "args", check_arguments("data.args", self.args))


def check_arguments(setting: str, arguments: tuple[tuple[str, Argument], ...]) -> tuple[tuple[str, Argument], ...]:
    """Return names and values sorted by name: equal settings compare equal in whatever order they were given.

    Raises:
        InputError: there is no pair, a name is given twice, or a value is no finite number and no text.
    """
    for pair in arguments:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InputError(f"expected {setting} to be pairs of a name and a value, got {pair!r}; write them as pairs")
    names = [name for name, _ in arguments]
    if len(set(names)) < len(names):
        raise InputError(
            f"expected other names in {setting}, got {names}: each name counts once; leave the extra ones out"
        )
    for name, value in arguments:
        check_text(f"a name in {setting}", name)
        if isinstance(value, str):
            check_text(f"{name} in {setting}", value)
        elif not isinstance(value, bool | int | float):
            raise InputError(
                f"expected {name} in {setting} to be a number, a text, True or False, got {value!r}; choose another "
                "value, or leave it out"
            )
        elif not math.isfinite(value):
            raise InputError(f"expected {name} in {setting} to be finite, got {value}; choose another value")
    return tuple(sorted(arguments, key=lambda pair: pair[0]))
