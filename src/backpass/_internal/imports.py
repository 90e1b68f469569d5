"""Imports by name: objects of the user's own, and modules that may not be installed."""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from backpass.errors import InputError, missing_extra

__all__ = ["call_object", "check_call", "import_lab", "import_object", "import_path", "is_import_path"]

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def import_lab(module: str, package: str, purpose: str) -> Any:
    """Import a module that the extra ``lab`` installs.

    Args:
        module: to import.
        package: that holds it, for the error.
        purpose: what needs it, in the plural, for the error.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:  # any other error is one of an installed module
        raise missing_extra(package, "lab", purpose) from error


def is_import_path(name: str) -> bool:
    """Return whether a name has the form ``package.module:object``.

    >>> is_import_path("torch.nn:Linear"), is_import_path("torch.nn"), is_import_path("folder:/data")
    (True, False, False)
    """
    return _PATH.fullmatch(name) is not None


def import_object(path: str, purpose: str) -> Any:
    """Return the object at ``package.module:object``; modules in the current folder are found too.

    Args:
        path: the import path.
        purpose: what the object is for, such as ``"task"``, for the error.

    Raises:
        InputError: the module cannot be imported, or has no such object.

    >>> import_object("torch.nn:Linear", "model").__name__
    'Linear'
    """
    module_name, _, names = path.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # As the last: a console script has it nowhere, and it must hide no package.
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # A module of the user's own may raise anything when it is imported.
        raise InputError(
            f"expected {purpose} {path!r} to name an object that can be imported as package.module:object, got "
            f"{type(error).__name__}: {error}; correct the path, or start in the folder that holds the package"
        ) from error
    for name in names.split("."):
        if not hasattr(found, name):
            raise InputError(
                f"expected {purpose} {path!r} to name an object of {module_name}, got a module without {name!r}; "
                "correct the name"
            )
        found = getattr(found, name)
    return found


def call_object(path: str, purpose: str, arguments: Mapping[str, Any]) -> Any:
    """Return what the function or class at ``package.module:object`` returns.

    Args:
        path: the import path.
        purpose: what it returns, such as ``"model"``, for errors.
        arguments: keyword arguments of the call.

    Raises:
        InputError: there is no such object, it cannot be called, or it does not take the arguments.

    >>> call_object("torch.nn:Linear", "model", {"in_features": 2, "out_features": 1})
    Linear(in_features=2, out_features=1, bias=True)
    """
    target = import_object(path, purpose)
    if not callable(target):
        raise InputError(
            f"expected {purpose} {path!r} to be a function that returns a {purpose}, got {target!r}; name the function "
            "that makes it"
        )
    check_call(target, path, arguments)
    return target(**arguments)


def import_path(target: Any) -> str:
    """Return the import path of a function or class, by which a recipe names it.

    Raises:
        InputError: the target is no function or class at the top of a module, or inside a class there.

    >>> from torch import nn
    >>> import_path(nn.Linear)
    'torch.nn.modules.linear:Linear'
    """
    path = f"{getattr(target, '__module__', None)}:{getattr(target, '__qualname__', None)}"
    if not is_import_path(path) or import_object(path, "object") is not target:
        raise InputError(
            f"expected a function or class that can be imported by its name, got {target!r}; define it at the top "
            "level of a module"
        )
    return path


def check_call(target: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> None:
    """Raise InputError if a function or class does not take these keyword arguments."""
    signature = inspect.signature(target)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        accepted = ", ".join(signature.parameters) or "none"
        raise InputError(
            f"expected arguments of {name!r}, which are {accepted}, got others: {error}; "
            "leave out the ones that it does not take, and give those that it needs"
        ) from None
