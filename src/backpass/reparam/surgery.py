"""Finding and exchanging modules in a module tree."""

from torch import nn

from backpass.reparam.block import ReparamBlock
from backpass.reparam.norm_act import remainder

__all__ = ["install", "outermost_blocks", "replace"]


def outermost_blocks(model: nn.Module) -> dict[str, ReparamBlock]:
    """Return the blocks of ``model`` that lie in no other block, by qualified name."""
    blocks: dict[str, ReparamBlock] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}." if outer else "") for outer in blocks)
        if isinstance(module, ReparamBlock) and not inside:
            blocks[name] = module
    return blocks


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in the place of ``old`` under every name that ``old`` has in ``model``."""
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)


def install(model: nn.Module, block: ReparamBlock, conv: nn.Module, norm: nn.Module | None) -> None:
    """Put ``block`` in the place of ``conv``, and in that of ``norm``, which it took over, what remains of it."""
    if norm is not None:
        placeholder = remainder(norm)
        block.absorbed = (placeholder,)
        replace(model, norm, placeholder)
    replace(model, conv, block)
