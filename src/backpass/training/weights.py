"""Trained weights that a model starts from: another run's, a file's, or those that timm or torchvision publish."""

import warnings
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from backpass._internal.imports import import_lab
from backpass._internal.wrappers import wrapper_prefix
from backpass.errors import BackpassWarning, InputError
from backpass.training.recipe import STUDY, WeightSettings

__all__ = ["WEIGHTS_FILE", "load_weights", "read_weights", "without_wrappers"]

WEIGHTS_FILE = "model.safetensors"
"""Name of the file in a run folder that holds the trained weights."""

_WRAPPERS = ("state_dict", "model")  # keys below which training scripts store the weights
_SHOWN = 6


def load_weights(model: nn.Module, settings: WeightSettings, folder: Path | None = None) -> None:
    """Copy trained weights into a model, in place.

    Tensors are taken where name and shape agree, after the prefix of a wrapper around the saved model. The others
    keep their values: a new head, or a stem of another form.

    Args:
        model: the plain model.
        settings: where the weights are, and which part of the model takes them.
        folder: of the run, next to which the other runs of its study are.

    Raises:
        InputError: the weights cannot be read, the model has no such part, or not one kernel fits.

    Warns:
        BackpassWarning: tensors do not fit; the message names them.
    """
    if settings.source is None:
        return
    weights = read_weights(settings.source, folder)
    try:
        part = model.get_submodule(settings.module)
    except AttributeError:
        parts = ", ".join(name for name, _ in model.named_children())
        raise InputError(
            f"expected weights.module to name a part of {type(model).__name__}, got {settings.module!r}; choose one of "
            f"{parts}"
        ) from None
    own = part.state_dict()
    weights = without_wrappers(weights, own)
    fitting = {name: tensor for name, tensor in weights.items() if name in own and tensor.shape == own[name].shape}
    if not any(tensor.ndim > 1 for tensor in fitting.values()):
        raise InputError(
            f"expected weights for {settings.module or type(model).__name__}, with names such as "
            f"{_listed(list(own))}, got {settings.source} with {_listed(list(weights))}; choose other weights or "
            "another weights.module"
        )
    part.load_state_dict(fitting, strict=False)
    fresh = [_shape_note(name, own[name], weights.get(name)) for name in own if name not in fitting]
    unused = [name for name in weights if name not in own]
    if fresh or unused:
        notes = [f"not in the weights, and freshly drawn: {_listed(fresh)}"] if fresh else []
        notes += [f"not in the model: {_listed(unused)}"] if unused else []
        warnings.warn(
            f"{settings.source}: {len(fitting)} of {len(own)} tensors of {settings.module or 'the model'} start from "
            f"these weights; {'; '.join(notes)}",
            BackpassWarning,
            stacklevel=2,
        )


def without_wrappers(weights: dict[str, Tensor], names: Container[str]) -> dict[str, Tensor]:
    """Return the weights without the prefix of a wrapper around the saved model, if only then they have such names."""
    while (prefix := wrapper_prefix(weights)) and not any(name in names for name in weights):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def read_weights(source: str, folder: Path | None = None) -> dict[str, Tensor]:
    """Return trained weights by name, on the CPU.

    Args:
        source: see :class:`~backpass.training.recipe.WeightSettings`.
        folder: of the run, next to which the other runs of its study are.

    Raises:
        InputError: there are no such weights, or they cannot be read.
        MissingExtraError: they are those of a library that is not installed.
    """
    library, _, name = source.partition("/")
    if library in ("timm", "torchvision") and name and not Path(source).exists():
        return _published(library, name)
    path = Path(source)
    if source.startswith(STUDY):
        if folder is None:
            raise InputError(
                f"expected {source!r} in a run that has a folder, next to which the other runs of the study are, got "
                "none; give the path of the weights instead"
            )
        path = folder.parent / source.removeprefix(STUDY)
    if path.is_dir():
        path = path / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(
            f"expected weights in a file, in a run folder, or as timm/NAME or torchvision/NAME, got {source!r}, where "
            f"there is no file {path}; correct the path, or wait until the run is complete"
        )
    try:
        found = _read(path)
    except Exception as error:  # Damaged files raise errors of every kind.
        raise InputError(
            f"expected {path} to hold weights as safetensors, or as torch.save writes tensors alone, got "
            f"{type(error).__name__}: {error}; replace the file"
        ) from error
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    weights = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not weights:
        raise InputError(f"expected {path} to hold a state_dict, got {type(found).__name__}; save model.state_dict()")
    return weights


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _published(library: str, name: str) -> dict[str, Tensor]:
    module = import_lab("timm" if library == "timm" else "torchvision.models", library, "published weights")
    try:
        if library == "timm":
            model: nn.Module = module.create_model(name, pretrained=True)
        else:
            model = module.get_model(name, weights="DEFAULT")
    except Exception as error:  # of the library, its sources and the network
        raise InputError(
            f"expected {library} to have trained weights of {name!r}, got {type(error).__name__}: {error}; choose "
            "another model, or download the weights elsewhere and give their file"
        ) from error
    return dict(model.state_dict())


def _shape_note(name: str, own: Tensor, other: Tensor | None) -> str:
    return name if other is None else f"{name} of shape {tuple(own.shape)} (weights: {tuple(other.shape)})"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
