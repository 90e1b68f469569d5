"""Claim: the methods against plain training, tuned, narrow VGG, 10 classes."""

from settings import TEN_CLASSES, tuned_claim

CLAIM = tuned_claim(TEN_CLASSES, "vgg11_narrow")
