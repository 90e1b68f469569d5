"""timm's ``BatchNormAct2d``, batch normalisation and activation in one module: taking it apart and rebuilding it."""

from collections import OrderedDict
from typing import cast

from torch import nn

from backpass.reparam.blocks.batch_norm import BatchNorm

__all__ = ["is_remainder", "normalisation", "rejoin", "remainder"]

_REST = ("drop", "act")
"""What a ``BatchNormAct2d`` does after normalising, in this order."""


def normalisation(module: nn.Module) -> nn.Module:
    """Return the normalisation alone of timm's ``BatchNormAct2d``, and any other module unchanged.

    It is an ``nn.BatchNorm2d`` with the same parameters and buffers, not copies of them.
    """
    if not _is_norm_act(module):
        return module
    whole = cast(nn.BatchNorm2d, module)
    norm = nn.BatchNorm2d(
        whole.num_features, whole.eps, whole.momentum, whole.affine, whole.track_running_stats, device="meta"
    )
    _share(whole, norm)
    return norm


def remainder(module: nn.Module) -> nn.Module:
    """Return what replaces ``module`` when a block takes over its normalisation.

    For a ``BatchNormAct2d`` its ``drop`` and ``act`` in an ``nn.Sequential``, under the same names, so that the
    parameters of an activation keep theirs in state dicts; a remainder itself; for others an ``nn.Identity``.
    """
    if is_remainder(module):
        return module
    rest: nn.Module = nn.Identity()
    if _is_norm_act(module):
        rest = nn.Sequential(OrderedDict((name, cast(nn.Module, getattr(module, name))) for name in _REST))
    rest.training = module.training
    return rest


def is_remainder(module: nn.Module | None) -> bool:
    """Return whether ``module`` is what :func:`remainder` leaves."""
    return type(module) is nn.Identity or (type(module) is nn.Sequential and tuple(module._modules) == _REST)


def rejoin(norm: BatchNorm, rest: nn.Module) -> nn.Module:
    """Return ``norm`` followed by ``rest``, what :func:`remainder` returned, in the form that both came from."""
    if type(rest) is nn.Identity:
        return norm
    from timm.layers.norm_act import BatchNormAct2d  # only a model made with timm leaves such a remainder

    whole = BatchNormAct2d(norm.num_features, norm.eps, device="meta")
    whole.momentum = norm.momentum
    _share(norm, whole)
    for name in _REST:
        setattr(whole, name, getattr(rest, name))
    return cast(nn.Module, whole)


def _share(norm: nn.Module, other: nn.Module) -> None:
    """Give ``other`` the parameters, the buffers and the mode of ``norm``."""
    for name in [*norm._parameters, *norm._buffers]:
        setattr(other, name, getattr(norm, name))
    other.training = norm.training


def _is_norm_act(module: nn.Module) -> bool:
    # By name, so that timm need not be installed; subclasses may do more.
    kind = type(module)
    return (kind.__module__, kind.__qualname__) == ("timm.layers.norm_act", "BatchNormAct2d")
