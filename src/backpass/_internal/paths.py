"""Paths as users give them."""

from os import PathLike

__all__ = ["AnyPath"]

AnyPath = str | PathLike[str]
