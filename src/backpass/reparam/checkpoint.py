"""State dicts across the forms of a model: plain, in training with blocks, and fused.

============  ==========================================  =====================================
form          convolution ``c``                           its normalisation ``n``
============  ==========================================  =====================================
plain         ``nn.Conv2d``                               ``nn.BatchNorm2d``
training      a block; keys ``c.branches.NAME...``        ``nn.Identity`` (inside the block)
fused         ``nn.Conv2d`` with bias                     ``nn.Identity`` (inside the kernel)
============  ==========================================  =====================================

Where the normalisation is timm's ``BatchNormAct2d``, the ``nn.Identity`` is an ``nn.Sequential`` of its ``drop`` and
``act``.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.reparam.block import MAIN, ReparamBlock, unsuitable_norm
from backpass.reparam.convert import block_kind
from backpass.reparam.fusion import fuse
from backpass.reparam.geometry import BatchNorm
from backpass.reparam.norm_act import is_remainder, normalisation, rejoin
from backpass.reparam.surgery import copied, install, outermost_blocks, replace

__all__ = ["BlockMap", "block_map", "load_state_dict", "restore_blocks", "to_plain"]

BlockMap = dict[str, dict[str, Any]]
"""Name of each block to what rebuilds it: strings, numbers, lists and ``None`` alone."""

_MARK = f"branches.{MAIN}."


def block_map(model: nn.Module) -> BlockMap:
    """Return the blocks of ``model``, nested ones after those around them, as plain data.

    Save it beside the state dict: :func:`restore_blocks` and :func:`load_state_dict` rebuild the training form
    from it. It survives JSON and ``torch.load(weights_only=True)``.
    """
    names = {id(module): name for name, module in model.named_modules()}
    return {
        name: {
            "block": block.name,
            "options": block.structure(),
            "absorbed": names.get(id(block.absorbed[0])) if block.absorbed else None,
            "had_bias": block.had_bias,
            "eps": block.main.norm.eps,
            "momentum": block.main.norm.momentum,
        }
        for name, block in model.named_modules()
        if isinstance(block, ReparamBlock)
    }


def restore_blocks(model: nn.Module, blocks: BlockMap, *, inplace: bool = False) -> nn.Module:
    """Return ``model`` with the blocks of another model's :func:`block_map`, for its state dict to be loaded.

    Args:
        model: the same network in plain or fused form.
        blocks: what :func:`block_map` returned.
        inplace: change ``model`` itself and return it. Default: a deep copy.

    Raises:
        InputError: a name in ``blocks`` is not a convolution of ``model``, or has no normalisation where the block
            took one over.
    """
    model = model if inplace else copied(model)
    for name, record in blocks.items():
        conv = _submodule(model, name)
        if type(conv) is not nn.Conv2d:
            raise InputError(
                f"the block map has a {record['block']} block at {name!r}, where the model has {_kind_of(conv)} "
                "instead of an nn.Conv2d; build the network that the map was made from, in plain form."
            )
        norm: BatchNorm | None = None
        place = None if record["absorbed"] is None else _submodule(model, record["absorbed"])
        if record["absorbed"] is not None:
            norm = _norm_at(place, conv, record)
        block = block_kind(record["block"])(conv, norm, **record["options"])
        block.had_bias = record["had_bias"]
        install(model, block, conv, place)
    return model


def to_plain(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in plain form, of the same function in eval mode.

    Each block becomes the ``nn.Conv2d`` that it replaced, with the fused kernel, and the normalisation that it
    took over is back in its place, neutral: ``mean`` 0, ``var`` 1, ``gamma`` ``sqrt(1 + eps)`` and ``beta`` the
    fused bias. The result's state dict loads into the network that :func:`~backpass.reparam.reparameterize`
    was given. Use it for evaluation: its statistics are no start for further training.

    Raises:
        InputError: a block took over no normalisation and replaced a convolution without bias, as DyRep's
            do, so that the plain form has no place for the fused bias.
        StateError: as :func:`~backpass.reparam.fuse`.
    """
    fused = fuse(model)
    places = {id(module): name for name, module in model.named_modules()}
    for name, block in outermost_blocks(model).items():
        conv = cast(nn.Conv2d, fused.get_submodule(name))
        bias = cast(nn.Parameter, conv.bias)
        if block.absorbed:
            norm = copied(block.main.norm)
            _neutralise(norm, bias)
            rest = fused.get_submodule(places[id(block.absorbed[0])])
            replace(fused, rest, rejoin(norm, rest))
            conv.bias = nn.Parameter(torch.zeros_like(bias)) if block.had_bias else None
        elif not block.had_bias:
            raise InputError(
                f"block {name!r} replaced a convolution without bias and took over no normalisation, so the plain "
                "form has no place for its bias; use fuse(model), whose convolutions have one."
            )
    return fused


def load_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], *, blocks: BlockMap | None = None) -> None:
    """Load ``state_dict``, strict, whether it and ``model`` are plain, in training form or fused.

    The same form loads as it is. A training checkpoint loads into a plain or a fused model through ``blocks``: the
    training form is rebuilt, loaded and turned into the form of ``model``. A plain or fused checkpoint does not load
    into a training form, since it has no branches.

    Args:
        model: the network that is to have the checkpoint's function.
        state_dict: the checkpoint.
        blocks: the :func:`block_map` of the model that the checkpoint is from; needed if only the checkpoint is in
            training form.

    Raises:
        InputError: the forms do not go together; the message names the first place and the next step.
    """
    ours = outermost_blocks(model, all_names=True)
    theirs = {key[: key.index(_MARK)].rstrip(".") for key in state_dict if _MARK in key}
    theirs = {name for name in theirs if not any(name.startswith(f"{outer}.") for outer in theirs)}
    if missing := [name for name in ours if name not in theirs]:
        raise InputError(
            f"the model has a {ours[missing[0]].name} block at {missing[0]!r}, the checkpoint a plain convolution "
            f"({len(missing)} such places): branches cannot be recovered from their sum. Load it into the plain model "
            "and call reparameterize afterwards, or into fuse(model.eval()) if the checkpoint is fused."
        )
    if extra := sorted(theirs - set(ours)):
        if blocks is None:
            raise InputError(
                f"the checkpoint has a block at {extra[0]!r}, the model a plain convolution ({len(extra)} such "
                "places). Pass blocks=block_map(the model that was saved), or call reparameterize on this model first."
            )
        state_dict = _converted(model, state_dict, blocks)
    model.load_state_dict(state_dict)


def _converted(model: nn.Module, state_dict: Mapping[str, Tensor], blocks: BlockMap) -> dict[str, Any]:
    """Return a training checkpoint in the plain or fused form that ``model`` has."""
    if outermost_blocks(model):
        raise InputError("the model has some of the checkpoint's blocks and lacks others; start from the plain model.")
    twin = restore_blocks(model, blocks).eval()
    twin.load_state_dict(state_dict)
    absorbed = [record["absorbed"] for record in blocks.values() if record["absorbed"] is not None]
    plain = any(not is_remainder(_submodule(model, name)) for name in absorbed)
    return (to_plain(twin) if plain else fuse(twin)).state_dict()


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _kind_of(module: nn.Module | None) -> str:
    return "nothing" if module is None else f"a {type(module).__name__}"


def _norm_at(place: nn.Module | None, conv: nn.Conv2d, record: Mapping[str, Any]) -> BatchNorm:
    """Return the plain form's normalisation, or one like it where the fused form has none."""
    if is_remainder(place):
        tensor = conv.weight
        return nn.BatchNorm2d(
            conv.out_channels, record["eps"], record["momentum"], device=tensor.device, dtype=tensor.dtype
        )
    norm = None if place is None else normalisation(place)
    if norm is None or unsuitable_norm(norm):
        raise InputError(
            f"the block map says that {record['absorbed']!r} was taken over, where the model has {_kind_of(place)} "
            "instead of an nn.BatchNorm2d; build the network that the map was made from, in plain form."
        )
    return cast(BatchNorm, norm)


@torch.no_grad()
def _neutralise(norm: BatchNorm, bias: Tensor) -> None:
    """Make ``norm`` add ``bias`` and do nothing else in eval mode."""
    cast(Tensor, norm.running_mean).zero_()
    cast(Tensor, norm.running_var).fill_(1.0)
    norm.weight.fill_(math.sqrt(1.0 + norm.eps))
    norm.bias.copy_(bias)
