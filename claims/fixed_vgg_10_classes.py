"""Claim: the methods against plain training, at the papers' fixed settings, narrow VGG, 10 classes."""

from settings import TEN_CLASSES, fixed_claim

CLAIM = fixed_claim(TEN_CLASSES, "vgg11_narrow")
