"""Models inside wrappers."""

from collections.abc import Iterable

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from backpass.errors import InputError

__all__ = ["refuse_fsdp1", "unwrap", "unwrapped_name", "wrapper_prefix"]

_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel and DataParallel; torch.compile
_WRAPPER_SEGMENTS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, DataParallel and ``torch.compile``."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def wrapper_prefix(names: Iterable[str]) -> str:
    """Return what a wrapper around the whole model puts before each of the names in its ``state_dict``, or ``""``.

    >>> wrapper_prefix(["module.0.weight", "module.0.bias"]), wrapper_prefix(["module.0.weight", "bias"])
    ('module.', '')
    """
    names = list(names)
    found = (prefix for prefix in _PREFIXES if names and all(name.startswith(prefix) for name in names))
    return next(found, "")


def refuse_fsdp1(model: nn.Module, consequence: str) -> None:
    """Raise InputError if a part of the model is under FSDP1, which flattens parameters.

    Args:
        model: any module.
        consequence: what is flattened and what is then unknown, for the message.
    """
    # By name, since importing FSDP1 for the check would cost every user its import.
    kinds = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    if "FullyShardedDataParallel" in kinds:
        raise InputError(
            f"FullyShardedDataParallel (FSDP1) flattens {consequence}; use FSDP2, torch.distributed.fsdp.fully_shard"
        )


def unwrapped_name(name: str) -> str:
    """Return a module's qualified name without the parts that wrappers inside the model add.

    >>> unwrapped_name("features._orig_mod.0")
    'features.0'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_SEGMENTS)
