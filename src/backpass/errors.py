"""The exceptions and warnings of backpass, all under one base class each."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "BackpassError",
    "BackpassWarning",
    "DivergedError",
    "InputError",
    "MissingExtraError",
    "NoEffectWarning",
    "StateError",
    "missing_extra",
    "naming_extra",
]


class BackpassError(Exception):
    """Base class of every error that backpass raises on purpose."""


class InputError(BackpassError, ValueError):
    """An argument or a piece of data is not what the call needs."""


class StateError(BackpassError, RuntimeError):
    """A call came at the wrong time, or found a model in a state that it cannot work with."""


class DivergedError(StateError):
    """A loss or a metric did not stay finite."""


class MissingExtraError(BackpassError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class BackpassWarning(UserWarning):
    """Base class of every warning that backpass issues."""


class NoEffectWarning(BackpassWarning):
    """A method was asked for and changes nothing."""


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """Return the error for a missing optional ``package``, naming the ``extra`` that installs it.

    >>> print(missing_extra("torchvision", "lab", "the CIFAR data sets"))
    the CIFAR data sets need torchvision, which is not installed; install it with: pip install 'backpass[lab]'
    """
    return MissingExtraError(
        f"{purpose} need {package}, which is not installed; install it with: pip install 'backpass[{extra}]'"
    )


@contextmanager
def naming_extra(extra: str, purpose: str) -> Iterator[None]:
    """Turn the error of an import in the ``with`` block into one that names the extra which installs the module.

    Raises:
        MissingExtraError: a module of another distribution is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("backpass"):
            raise
        raise missing_extra(str(error.name), extra, purpose) from error
