"""From a plain model to one with branched blocks."""

import inspect
import warnings
from typing import Any, cast

from torch import nn

from backpass._internal.selection import Include
from backpass.errors import BackpassWarning, InputError, NoEffectWarning
from backpass.reparam.blocks.batch_norm import BatchNorm
from backpass.reparam.blocks.registry import block_kind
from backpass.reparam.conversion.batch_norm_act import normalisation
from backpass.reparam.conversion.module_replacement import copied, install
from backpass.reparam.conversion.plan import plan_conversion
from backpass.reparam.conversion.probe import Probe

__all__ = ["reparameterize"]


def reparameterize(
    model: nn.Module,
    name: str,
    *,
    include: Include | None = None,
    probe: Probe | None = None,
    inplace: bool = False,
    **options: Any,
) -> nn.Module:
    """Return ``model`` with convolutions and the batch normalisations that follow them replaced by blocks.

    A block replaces each ``nn.Conv2d`` with a square kernel of 2 to 6 taps a side whose output goes to one
    ``nn.BatchNorm2d`` (or ``nn.SyncBatchNorm``, or timm's ``BatchNormAct2d``) and nowhere else. The normalisation moves
    into the block's ``kxk`` branch together with the convolution's weight and is replaced by an ``nn.Identity``, or by
    the ``drop`` and ``act`` of a ``BatchNormAct2d``. New kernels have PyTorch's default initialisation, drawn from its
    global generator. Train the result with an optimizer built after this call, then :func:`~backpass.reparam.fuse`.

    Layers that a block could not replace without a loss stay plain: those with hooks, with a replaced ``forward``,
    with parameters or buffers that another module shares, held outside the registered modules, or whose tensors the
    forward pass reads (``self.conv.weight``), as far as tracing or the probe shows. So do frozen layers, since new
    branches would train: those with ``requires_grad=False``, and normalisations kept in eval mode inside a model in
    train mode. A layer that is used several times becomes one block that is used several times.
    :func:`~backpass.reparam.plan_conversion` returns what is converted, and the reason for each layer that is not.

    Args:
        model: any module.
        name: ``"acb"`` (ACNet), ``"repvgg"``, ``"dbb"`` (as its authors built it) or ``"dbb_dyrep"`` (the "DBB"
            of the tables of DyRep and SGS).
        include: convert only these: glob patterns on module names such as ``["layer1.*"]``, or a function
            ``(module name, module) -> bool``. Default: all.
        probe: an input of the model, for models whose forward pass cannot be traced: a tensor, or the
            positional or keyword arguments as a sequence or mapping. The model runs on it in eval and in train mode.
        inplace: change ``model`` itself and return it. Default: a deep copy.
        **options: arguments of the block: ``gamma`` and ``init`` of :class:`~backpass.reparam.ACBlock`,
            ``init`` of :class:`~backpass.reparam.RepVGGBlock` and of
            :class:`~backpass.reparam.DiverseBranchBlock`, ``branches`` of :class:`~backpass.reparam.DyRepBlock`.

    Returns:
        The model in training form. A model in which nothing can be converted is returned unchanged, with a warning
        that holds the reasons.

    Raises:
        InputError: ``name`` or an option is unknown, or a pattern matches no convolution.

    Warns:
        BackpassWarning: what happens between a convolution and its normalisation is not certain: there is no ``probe``
            and the forward pass can be traced in parts alone, or the model does not run on the probe in train mode.
        NoEffectWarning: nothing can be converted.
    """
    kind = block_kind(name)
    allowed = sorted(inspect.signature(kind).parameters.keys() - {"conv", "norm"})
    if unknown := sorted(options.keys() - set(allowed)):
        raise InputError(
            f"expected options of {name}, which are {', '.join(allowed)}, got {', '.join(unknown)}; "
            "leave the others out"
        )
    plan = plan_conversion(model, name, include=include, probe=probe)
    if not plan.converted:
        reasons = f":\n{plan}" if plan.skipped else "; it has no nn.Conv2d outside of blocks"
        warnings.warn(f"{name} converts no layer of {type(model).__name__}{reasons}", NoEffectWarning, stacklevel=2)
    if plan.doubt is not None:
        warnings.warn(f"{name} converts layers of which it is not certain: {plan.doubt}", BackpassWarning, stacklevel=2)
    model = model if inplace else copied(model)
    for conv_name, norm_name in plan.converted.items():
        conv, place = model.get_submodule(conv_name), model.get_submodule(norm_name)
        norm = cast(BatchNorm, normalisation(place))
        install(model, kind(cast(nn.Conv2d, conv), norm, **options), conv, place)
    return model
