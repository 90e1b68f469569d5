"""The making of a study in a storage, and what its maker leaves there for the workers: folder and runtime."""

from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from backpass.errors import InputError
from backpass.experiments.scheduling.storage import storage_file
from backpass.experiments.serialization import to_json
from backpass.training.recipe import Runtime

__all__ = ["made_with", "make_study"]


def make_study(storage: BaseStorage, name: str, *, folder: Path, runtime: Runtime) -> None:
    """Make the study called ``name``, unless it was made earlier.

    Args:
        storage: of :func:`backpass.experiments.scheduling.storage.open_storage`.
        name: of the study.
        folder: of the run folders.
        runtime: how every worker computes.

    Raises:
        InputError: the study is that of another folder. A storage whose file lies in the folder moves with it.
    """
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    own, file = folder.resolve(), storage_file(storage)
    stored = study.user_attrs.get("folder", str(own))
    if stored != str(own) and not (file is not None and file.resolve().is_relative_to(own)):
        raise InputError(
            f"expected study {name!r} of the storage to be that of the folder {own}, got the one of {stored}; choose a "
            "folder that is called otherwise, or another storage; where both are one folder, seen from two machines, "
            f"start backpass worker with --name {name} --out {own} instead"
        )
    study.set_user_attr("folder", str(own))
    study.set_user_attr("runtime", to_json(runtime))


def made_with(study: optuna.Study, name: str) -> str:
    """Return what the maker of a study has left under ``name``: ``folder`` or ``runtime``.

    Raises:
        InputError: it is not there yet.
    """
    attributes = study.user_attrs
    if name not in attributes:
        raise InputError(
            f"expected study {study.study_name!r} to have a {name}, got one that is not yet made, or whose making was "
            "interrupted; start the command that makes it again"
        )
    return str(attributes[name])
