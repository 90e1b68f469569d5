"""The study in its storage: made or opened, and what its maker leaves there for the workers."""

from pathlib import Path
from typing import Self

import optuna
from optuna.storages import BaseStorage, RDBStorage

from backpass.errors import InputError
from backpass.experiments.scheduling.storage import open_storage, storage_file
from backpass.experiments.scheduling.storage_errors import naming_lost_storage
from backpass.experiments.serialization import from_json, to_json
from backpass.training.recipe import Runtime

__all__ = ["StoredStudy"]


class StoredStudy:
    """A study in a storage.

    Args:
        storage: of :func:`backpass.experiments.scheduling.storage.open_storage`.
        name: of the study in it.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self.name = name
        self._storage = storage
        self._study = optuna.load_study(study_name=name, storage=storage)

    @classmethod
    def open(cls, address: str, name: str | None = None) -> Self:
        """Return a study that was made earlier.

        Args:
            address: folder, ``journal:PATH`` or database URL.
            name: of the study; may be left out where there is one only.

        Raises:
            InputError: the storage cannot be opened, or holds no such study.
        """
        storage = open_storage(address)
        names = optuna.get_all_study_names(storage)
        if (name is None and len(names) != 1) or (name is not None and name not in names):
            wanted = "one study, or its name" if name is None else f"a study called {name!r}"
            found = ", ".join(map(repr, names)) or "no study"
            raise InputError(f"expected {wanted} in {address}, found {found}; give the name of one of them")
        return cls(storage, name or names[0])

    @classmethod
    def create(cls, address: str, name: str, *, folder: Path, runtime: Runtime) -> Self:
        """Return the study called ``name``, made now or earlier.

        Args:
            address: folder, ``journal:PATH`` or database URL; missing folders and tables are made.
            name: of the study.
            folder: of the run folders; workers use it unless they are given another.
            runtime: how every worker computes.

        Raises:
            InputError: the storage cannot be opened, or its study of this name is that of another folder. A storage
                whose file lies in the folder moves with it.
            StorageLostError: the storage cannot be written to, or does not answer.
        """
        storage = open_storage(address, create=True)
        own, file = folder.resolve(), storage_file(storage)
        with naming_lost_storage(file):
            study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
        stored = study.user_attrs.get("folder", str(own))
        if stored != str(own) and not (file is not None and file.resolve().is_relative_to(own)):
            raise InputError(
                f"expected study {name!r} of the storage to be that of the folder {own}, got the one of {stored}; "
                "choose a folder that is called otherwise, or another storage; where both are one folder, seen from "
                f"two machines, start backpass worker with --name {name} --out {own} instead"
            )
        with naming_lost_storage(file):
            study.set_user_attr("folder", str(own))
            study.set_user_attr("runtime", to_json(runtime))
        return cls(storage, name)

    def close(self) -> None:
        """Close the connections to a database."""
        if isinstance(self._storage, RDBStorage):
            self._storage.remove_session()
            self._storage.engine.dispose()

    @property
    def folder(self) -> Path:
        """Folder of the run folders, as the study's maker saw it."""
        return Path(self._made_with("folder"))

    @property
    def runtime(self) -> Runtime:
        """How every worker computes."""
        return from_json(Runtime, self._made_with("runtime"), f"runtime of study {self.name!r}")

    @property
    def file(self) -> Path | None:
        """The file of the storage; ``None`` for a database server."""
        return storage_file(self._storage)

    def _made_with(self, name: str) -> str:
        attributes = self._study.user_attrs
        if name not in attributes:
            raise InputError(
                f"expected study {self.name!r} to have a {name}, got one that is not yet made, or whose making was "
                "interrupted; start the command that makes it again"
            )
        return str(attributes[name])
