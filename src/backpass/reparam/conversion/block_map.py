"""The blocks of a model as plain data, from which they can be rebuilt."""

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from backpass.errors import InputError
from backpass.reparam.blocks.batch_norm import BatchNorm, unsuitable_norm
from backpass.reparam.blocks.block import ReparamBlock
from backpass.reparam.blocks.registry import block_kind
from backpass.reparam.conversion.batch_norm_act import is_remainder, normalisation
from backpass.reparam.conversion.module_replacement import copied, install

__all__ = ["BlockMap", "block_map", "restore_blocks", "submodule"]

BlockMap = dict[str, dict[str, Any]]
"""Name of each block to what rebuilds it: strings, numbers, lists and ``None`` alone."""


def block_map(model: nn.Module) -> BlockMap:
    """Return the blocks of ``model``, nested ones after those around them, as plain data.

    Save it together with the state dict: :func:`restore_blocks` and :func:`load_state_dict` rebuild the training form
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
        conv = submodule(model, name)
        if type(conv) is not nn.Conv2d:
            raise InputError(
                f"expected an nn.Conv2d at {name!r}, where the block map has a {record['block']} block, got "
                f"{_kind_of(conv)}; build the network that the map was made from, in plain form"
            )
        place = None if record["absorbed"] is None else submodule(model, record["absorbed"])
        norm = _new_norm(conv, record) if record["absorbed"] is None else _norm_at(place, conv, record)
        block = block_kind(record["block"])(conv, norm, **record["options"])
        block.had_bias = record["had_bias"]
        install(model, block, conv, place)
    return model


def submodule(model: nn.Module, name: str) -> nn.Module | None:
    """Return the submodule ``name`` of ``model``; ``None`` if there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _kind_of(module: nn.Module | None) -> str:
    return "nothing" if module is None else f"a {type(module).__name__}"


def _new_norm(conv: nn.Conv2d, record: Mapping[str, Any]) -> BatchNorm:
    tensor = conv.weight
    return nn.BatchNorm2d(
        conv.out_channels, record["eps"], record["momentum"], device=tensor.device, dtype=tensor.dtype
    )


def _norm_at(place: nn.Module | None, conv: nn.Conv2d, record: Mapping[str, Any]) -> BatchNorm:
    """Return the plain form's normalisation, or one like it where the fused form has none."""
    if is_remainder(place):
        return _new_norm(conv, record)
    norm = None if place is None else normalisation(place)
    if norm is None or unsuitable_norm(norm):
        raise InputError(
            f"expected an nn.BatchNorm2d at {record['absorbed']!r}, which a block of the block map took over, got "
            f"{_kind_of(place)}; build the network that the map was made from, in plain form"
        )
    return cast(BatchNorm, norm)
