"""Claim: the methods against plain training, at the papers' fixed settings, ResNet-20, 100 classes."""

from settings import HUNDRED_CLASSES, fixed_claim

CLAIM = fixed_claim(HUNDRED_CLASSES, "resnet20")
