"""Structural re-parameterisation: branches during training, one convolution afterwards."""

from backpass.reparam.acb import ACBlock
from backpass.reparam.block import ReparamBlock
from backpass.reparam.checkpoint import block_map, load_state_dict, restore_blocks, to_plain
from backpass.reparam.convert import BLOCKS, Conversion, plan_conversion, reparameterize
from backpass.reparam.dbb import DiverseBranchBlock, DyRepBlock
from backpass.reparam.dyrep import Adjustment, DyRep
from backpass.reparam.equivalence import branch_scales, equivalent_scaling
from backpass.reparam.fusion import fuse
from backpass.reparam.repvgg import RepVGGBlock, custom_l2, custom_l2_kernels, custom_l2_loss

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
    "custom_l2",
    "custom_l2_kernels",
    "custom_l2_loss",
    "equivalent_scaling",
    "fuse",
    "load_state_dict",
    "plan_conversion",
    "reparameterize",
    "restore_blocks",
    "to_plain",
]
