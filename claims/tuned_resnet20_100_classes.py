"""Claim: the methods against plain training, tuned, ResNet-20, 100 classes."""

from settings import HUNDRED_CLASSES, tuned_claim

CLAIM = tuned_claim(HUNDRED_CLASSES, "resnet20")
