"""Claim: the methods against plain training, tuned, ResNet-20, 10 classes."""

from settings import TEN_CLASSES, tuned_claim

CLAIM = tuned_claim(TEN_CLASSES, "resnet20")
