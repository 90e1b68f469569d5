"""Claim: the methods against plain training, at the papers' fixed settings, ResNet-20, 10 classes."""

from settings import TEN_CLASSES, fixed_claim

CLAIM = fixed_claim(TEN_CLASSES, "resnet20")
