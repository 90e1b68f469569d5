"""Structural re-parameterisation: branches during training, one convolution afterwards."""

from backpass.reparam.blocks.acb import ACBlock
from backpass.reparam.blocks.block import ReparamBlock
from backpass.reparam.blocks.dbb import DiverseBranchBlock
from backpass.reparam.blocks.dbb_dyrep import DyRepBlock
from backpass.reparam.blocks.equivalent_scaling import branch_scales, equivalent_scaling
from backpass.reparam.blocks.registry import BLOCKS
from backpass.reparam.blocks.repvgg import RepVGGBlock
from backpass.reparam.conversion.block_map import block_map, restore_blocks
from backpass.reparam.conversion.fusion import fuse
from backpass.reparam.conversion.plain_form import to_plain
from backpass.reparam.conversion.plan import Conversion, plan_conversion
from backpass.reparam.conversion.reparameterize import reparameterize
from backpass.reparam.conversion.state_dicts import load_state_dict
from backpass.reparam.dyrep.dyrep import Adjustment, DyRep

__all__ = [
    "BLOCKS",
    "ACBlock",
    "Adjustment",
    "Conversion",
    "DiverseBranchBlock",
    "DyRep",
    "DyRepBlock",
    "RepVGGBlock",
    "ReparamBlock",
    "block_map",
    "branch_scales",
    "equivalent_scaling",
    "fuse",
    "load_state_dict",
    "plan_conversion",
    "reparameterize",
    "restore_blocks",
    "to_plain",
]
