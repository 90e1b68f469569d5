"""Claim: the methods against plain training, tuned, narrow VGG, 100 classes."""

from claim import BFLOAT16
from settings import HUNDRED_CLASSES, tuned_claim

CLAIM = tuned_claim(HUNDRED_CLASSES, "vgg11_narrow", BFLOAT16)
