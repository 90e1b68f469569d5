"""Claim: SGS on 10 classes with few images each, over as many steps as with many.

With 12,500 images of 10 classes SGS lost 0.73 points, and plain training was 0.2 points better on training than on test
images (``fixed_vgg_10_classes``). If SGS pays where a net overfits, it should gain here: images, net, steps and the
steps at which it measures are the same, but each of a tenth of the images is seen ten times as often.
"""

from dataclasses import replace

from backpass.experiments import compare_study, get_recipe
from claim import BFLOAT16, Claim
from settings import TEN_CLASSES

_RECIPE = get_recipe("cpu-30")

CLAIM = Claim(
    question="At the fixed settings of the SGS paper, how does SGS change the test accuracy of a narrow VGG-11 on 10 "
    "classes with 128 images each, over the 2,910 steps that 30 epochs of 1,250 images each take?",
    study=compare_study(
        replace(
            _RECIPE,
            data=replace(TEN_CLASSES, limit_train=1_280),
            epochs=291,  # of 10 steps each, instead of 30 of 97
            sgs=replace(_RECIPE.sgs, warmup=10, every=48),
        ),
        ("plain", "sgs"),
        range(10),
    ),
    smallest=1.0,
    seeds_from="A difference of 1.0 points, at a standard deviation of 0.8 points of the paired differences (0.6 and "
    "0.3 in the claims on this net with 12,500 images; fewer are expected to spread more), is told at p < 0.05 with "
    "power 0.9 by 9 seeds; 10 are run.",
    runtime=replace(BFLOAT16, evaluate_every=48, checkpoint_every=10),
)
