"""Claim: the methods against plain training, at the papers' fixed settings, narrow VGG, 100 classes, in bfloat16."""

from claim import BFLOAT16
from settings import HUNDRED_CLASSES, fixed_claim

CLAIM = fixed_claim(HUNDRED_CLASSES, "vgg11_narrow", BFLOAT16)
