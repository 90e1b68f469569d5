"""Batch normalisation with the statistics of all processes."""

from types import ModuleType
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from backpass.errors import InputError

__all__ = ["synchronise_batch_norm"]

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Return the model with ``nn.SyncBatchNorm`` instead of each batch normalisation, with the same parameters.

    timm's ``BatchNormAct2d``, normalisation and activation in one module, becomes timm's synchronised one.

    Raises:
        InputError: another subclass of batch normalisation, which may do more.
    """
    others = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and type(m) not in _PLAIN}
    if not others:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return, no-untyped-call]
    layers = _layers_of_timm()
    for name, module in others.items():
        if layers is None or type(module) not in (layers.BatchNormAct2d, layers.SyncBatchNormAct):
            raise InputError(
                "expected batch normalisations of PyTorch, or timm's BatchNormAct2d, to synchronise, got "
                f"{type(module).__name__} at {name!r}, which may do more; switch sync_batch_norm off"
            )
    converted: nn.Module = cast(Any, layers).convert_sync_batchnorm(model)
    return converted


def _layers_of_timm() -> ModuleType | None:
    try:
        import timm.layers
    except ImportError:
        return None
    layers: ModuleType = timm.layers
    return layers
