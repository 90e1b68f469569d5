"""Claim: the methods against plain training, at the papers' fixed settings, narrow VGG, 100 classes, in float32."""

from claim import CPU
from settings import HUNDRED_CLASSES, fixed_claim

CLAIM = fixed_claim(HUNDRED_CLASSES, "vgg11_narrow", CPU, superseded_by="fixed_vgg_100_classes_bf16")
