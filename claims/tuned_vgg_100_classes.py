"""Claim: the methods against plain training, tuned, narrow VGG, 100 classes."""

from settings import HUNDRED_CLASSES, tuned_claim

CLAIM = tuned_claim(HUNDRED_CLASSES, "vgg11_narrow")
