"""Checkpoints: written whole or not at all, read without running anything that is in the file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import save_file
from torch import Tensor

from backpass.errors import InputError

__all__ = ["atomic_write", "load_checkpoint", "save_checkpoint", "save_weights"]


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    with _replacing(path) as temporary:
        temporary.write_bytes(data)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save ``state`` (tensors and plain values in containers) atomically."""
    with _replacing(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state saved at ``path`` on the CPU; only tensors and plain values are accepted.

    Raises:
        InputError: the file is missing, damaged, or holds anything that would run code.
    """
    if not path.is_file():
        raise InputError(f"expected a checkpoint at {path}, found none")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path} is not a readable checkpoint ({type(error).__name__}: {error})") from error
    return state


def save_weights(path: Path, state_dict: dict[str, Tensor]) -> None:
    """Save a model's ``state_dict`` as safetensors, atomically; shared tensors are written out separately."""
    with _replacing(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}, temporary)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a new path beside ``path``; the file written there takes its place, or is removed after an error."""
    # Process numbers are not unique among the machines and containers that share a folder.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
