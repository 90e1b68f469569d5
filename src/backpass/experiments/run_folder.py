"""The folder of one run: who may write in it, and its files."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from backpass.experiments.environment import Environment
from backpass.experiments.record import RECORD_FILE, Record, read_record
from backpass.experiments.serialization import from_json, read_json, to_json
from backpass.training.checkpoint import atomic_write, remove_temporaries
from backpass.training.differences import check_run
from backpass.training.lock import FolderLock, lock_folder
from backpass.training.outcome import EpochRecord
from backpass.training.recipe import Run

__all__ = ["RunFolder"]


class RunFolder:
    """The files of one run, in the hands of the main process.

    Args:
        path: the folder; made when it is opened.
        run: the run that it has to belong to.
        check: raises to abandon the run; who passes it has claimed the run and takes the folder over.
    """

    def __init__(self, path: Path, run: Run, check: Callable[[], None] | None) -> None:
        self.path, self._run, self._check = path, run, check
        self._lock: FolderLock | None = None

    def read(self, entry: str) -> Record | None:
        """Return the record, of this entry if one is given, if the run is complete.

        A record without entry, of a run that was trained before a study had it, gets it in its file too.

        Raises:
            InputError: it belongs to another run, or cannot be read.
        """
        path = self.path / RECORD_FILE
        if not path.is_file():
            return None
        record = read_record(path)
        self._compare(record.run)
        if not entry or record.entry == entry:
            return record
        own = replace(record, entry=entry)
        if not record.entry:
            self.check_write()
            self.write_record(own)
        return own

    def open(self, stack: ExitStack, entry: str) -> Record | None:
        """Lock the folder until the stack is closed, and return the record if another process has written it.

        Raises:
            InputError: the folder belongs to another run; nothing in it has changed then.
            StateError: another process trains in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = stack.enter_context(lock_folder(self.path, take_over=self._check is not None))
        if record := self.read(entry):
            return record
        config = self.path / "config.json"
        if config.is_file():
            self._compare(from_json(Run, config.read_bytes(), str(config)))
        remove_temporaries(self.path)
        return None

    def _compare(self, stored: Run) -> None:
        check_run(self._run.as_dict(), stored.as_dict(), str(self.path), "choose another folder or remove this one")

    def check_step(self) -> None:
        """Raise if the run is no longer this process's to train."""
        if self._check is not None:
            self._check()

    def check_write(self) -> None:
        """Raise if the folder is no longer this process's to write in."""
        self.check_step()
        if self._lock is not None:
            self._lock.check()

    def write_settings(self, here: Environment, *, resumed: bool) -> Environment:
        """Write the run and where it is computed; return the latter with the other hardware of a run that is resumed.

        Raises:
            InputError: the file that says where it was computed cannot be read.
        """
        path = self.path / "environment.json"
        before = read_json(Environment, path) if resumed else None
        where = here if before is None else here.after(before)
        atomic_write(self.path / "config.json", to_json(self._run).encode())
        atomic_write(path, to_json(where).encode())
        return where

    def write_metrics(self, history: list[EpochRecord]) -> None:
        """Write the records of all epochs so far, one a line."""
        atomic_write(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history).encode())

    def write_record(self, record: Record) -> None:
        """Write the record, which ends the run."""
        record.write(self.path / RECORD_FILE)
