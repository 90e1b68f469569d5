"""The kinds of block by name."""

from backpass.errors import InputError
from backpass.reparam.blocks.acb import ACBlock
from backpass.reparam.blocks.dbb import DiverseBranchBlock
from backpass.reparam.blocks.dbb_dyrep import DyRepBlock
from backpass.reparam.blocks.repvgg import RepVGGBlock

__all__ = ["BLOCKS", "BlockKind", "block_kind"]

BlockKind = type[ACBlock] | type[RepVGGBlock] | type[DiverseBranchBlock] | type[DyRepBlock]

BLOCKS: dict[str, BlockKind] = {block.name: block for block in (ACBlock, RepVGGBlock, DiverseBranchBlock, DyRepBlock)}
"""The kinds of block by name."""


def block_kind(name: str) -> BlockKind:
    """Return the class of the blocks called ``name``.

    Raises:
        InputError: there is none; the message lists the names.
    """
    if name not in BLOCKS:
        raise InputError(f"expected one of the blocks {', '.join(BLOCKS)}, got {name!r}; choose one of them")
    return BLOCKS[name]
