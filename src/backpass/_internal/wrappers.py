"""Models inside wrappers."""

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["unwrap", "unwrapped_name"]

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


def unwrapped_name(name: str) -> str:
    """Return a module's qualified name without the parts that wrappers inside the model add.

    >>> unwrapped_name("features._orig_mod.0")
    'features.0'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_SEGMENTS)
