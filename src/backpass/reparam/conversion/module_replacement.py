"""Replacing modules of a model by others."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from backpass.reparam.blocks.batch_norm import BatchNorm
from backpass.reparam.blocks.block import ReparamBlock
from backpass.reparam.conversion.batch_norm_act import remainder

__all__ = ["copied", "install", "outermost_blocks", "replace", "undone_on_error"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def copied(module: ModuleT) -> ModuleT:
    """Return a deep copy of ``module`` that shares the process groups of its normalisations, which have no copies."""
    groups = [m.process_group for m in module.modules() if isinstance(m, nn.SyncBatchNorm)]
    return copy.deepcopy(module, memo={id(group): group for group in groups if group is not None})


def outermost_blocks(model: nn.Module, *, all_names: bool = False) -> dict[str, ReparamBlock]:
    """Return the blocks of ``model`` that lie in no other block, by qualified name: the first, or all that each has."""
    blocks: dict[str, ReparamBlock] = {}
    for name, module in model.named_modules(remove_duplicate=not all_names):
        inside = any(name.startswith(f"{outer}." if outer else "") for outer in blocks)
        if isinstance(module, ReparamBlock) and not inside:
            blocks[name] = module
    return blocks


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` under every name that ``old`` has in ``model``."""
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)


def install(model: nn.Module, block: ReparamBlock, conv: nn.Module, norm: nn.Module | None) -> None:
    """Replace ``conv`` by ``block``, and ``norm``, which the block took over, by what remains of it."""
    if norm is not None:
        placeholder = remainder(norm)
        block.absorbed = (placeholder,)
        replace(model, norm, placeholder)
    replace(model, conv, block)


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Undo what the ``with`` block replaced in ``model``, if it raises an error.

    The values of normalisations are restored too, since a block changes those of the one that it takes over.
    """
    children = [(module, dict(module._modules)) for module in model.modules()]
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    values = [(t, t.detach().clone()) for n in norms for t in (*n.parameters(recurse=False), *n.buffers(recurse=False))]
    try:
        yield
    except BaseException:
        for module, before in children:
            for name, child in before.items():
                if module._modules[name] is not child:
                    setattr(module, name, child)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        raise
