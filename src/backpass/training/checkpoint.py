"""Files of a run, written whole or not at all; checkpoints with a checksum, read without running what is in them."""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import save
from torch import Tensor

from backpass._internal.paths import AnyPath
from backpass.errors import BackpassWarning, InputError

__all__ = [
    "Checkpoints",
    "atomic_write",
    "load_checkpoint",
    "remove_temporaries",
    "save_checkpoint",
    "save_weights",
]

_NAME = "checkpoint.pt"
_PREVIOUS = "checkpoint.previous.pt"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")
_CHECKSUM = b"sha256 "
_CHECKSUM_LENGTH = len(_CHECKSUM) + 2 * hashlib.sha256().digest_size


class DamagedCheckpointError(InputError):
    """A checkpoint file whose content is not what was written."""


class Checkpoints:
    """The newest checkpoint of a run folder, ``checkpoint.pt``, and the one before it, ``checkpoint.previous.pt``.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: AnyPath) -> None:
        self.folder = Path(folder)
        self.newest, self.previous = self.folder / _NAME, self.folder / _PREVIOUS
        self._damaged = False

    def make_folder(self) -> None:
        """Make the folder, and those that it is in, where they are missing."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def exist(self) -> bool:
        """Return whether the folder has a checkpoint, damaged or not."""
        return self.newest.is_file() or self.previous.is_file()

    def save(self, state: dict[str, Any]) -> None:
        """Save a state atomically, and keep the last good one."""
        with _written(self.newest, lambda file: _write_checkpoint(file, state)) as temporary:
            # A process that is killed between these two lines leaves the previous one, which ``load`` then returns.
            if self.newest.is_file() and not self._damaged:
                self.newest.replace(self.previous)
            temporary.replace(self.newest)
        self._damaged = False

    def load(self) -> dict[str, Any] | None:
        """Return the newest state that is not damaged, on the CPU, or ``None`` if the folder has no checkpoint.

        Raises:
            InputError: all are damaged, or one holds what would run code.

        Warns:
            BackpassWarning: the newest is damaged and the previous one is returned.
        """
        damaged: list[str] = []
        for path in (self.newest, self.previous):
            if not path.is_file():
                continue
            try:
                state = load_checkpoint(path)
            except DamagedCheckpointError as error:
                damaged.append(str(error).removesuffix("; remove it"))
                continue
            if damaged:
                self._damaged = True
                warnings.warn(f"{damaged[0]}; the run resumes from {path.name}", BackpassWarning, stacklevel=2)
            return state
        if damaged:
            raise InputError(f"{'; '.join(damaged)}; remove {'them' if damaged[1:] else 'it'} to start the run again")
        return None


def save_checkpoint(path: AnyPath, state: dict[str, Any]) -> None:
    """Save ``state`` (tensors and plain values in containers) with its checksum, atomically.

    ``torch.load(path, weights_only=True)`` reads the file as well: the checksum, a SHA-256 of all bytes before it, is
    the comment of the zip archive that PyTorch writes.
    """
    path = Path(path)
    with _written(path, lambda file: _write_checkpoint(file, state)) as temporary:
        temporary.replace(path)


def load_checkpoint(path: AnyPath) -> dict[str, Any]:
    """Return the state saved at ``path`` on the CPU; only tensors and plain values are accepted.

    Raises:
        InputError: the file is missing, differs from what was written by a single bit, or holds anything that would
            run code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"expected a checkpoint at {path}, found none; correct the path")
    content = path.read_bytes()
    checked, checksum = content[:-_CHECKSUM_LENGTH], content[-_CHECKSUM_LENGTH:]
    if checksum != _CHECKSUM + hashlib.sha256(checked).hexdigest().encode():
        raise DamagedCheckpointError(
            f"expected {path} to hold what was written, as by its checksum, got other bytes; remove it"
        )
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"expected {path} to hold tensors and plain values alone, got {type(error).__name__}: {error}; remove it"
        ) from error
    return state


def _write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    # The last two bytes of a zip archive without a comment are the length of the comment, zero.
    content = buffer.getbuffer()[:-2]
    length = _CHECKSUM_LENGTH.to_bytes(2, "little")
    checksum = hashlib.sha256(content)
    checksum.update(length)
    with path.open("wb") as file:
        file.write(content)
        file.write(length + _CHECKSUM + checksum.hexdigest().encode())


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, finds the old content or the new one, never a part."""
    with _written(path, lambda file: file.write_bytes(data)) as temporary:
        temporary.replace(path)


def save_weights(path: Path, state_dict: dict[str, Tensor]) -> None:
    """Save a model's ``state_dict`` as safetensors, atomically; shared tensors are written out separately."""
    content = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()})
    atomic_write(path, content)


def remove_temporaries(folder: Path) -> None:
    """Remove what writers that were killed left in ``folder``; nothing else may be writing there."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def _written(path: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    """Yield a new file next to ``path``, written and on the disk; if it still exists at the end, it is removed."""
    # Process numbers are not unique among the machines and containers that share a folder.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        write(temporary)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
