"""Claim: the methods against plain training, tuned, ResNet-20, 100 classes."""

from backpass.experiments import compare_study
from backpass.experiments.tuning import Tuning, parse_space
from claim import CPU_SEEDS, SPACE, Claim
from settings import HUNDRED_CLASSES, on_cpu

CLAIM = Claim(
    question="With learning rate and weight decay tuned for each method with the same budget, how does each change the "
    "test accuracy of ResNet-20 on 100 classes with 125 images each?",
    study=compare_study(
        on_cpu(HUNDRED_CLASSES, "resnet20"),
        ("plain", "sgs", "pgt", "sgs+pgt"),
        range(10),
        space=parse_space(SPACE),
        tuning=Tuning(seeds=(1000,)),
    ),
    smallest=1.0,
    seeds_from=CPU_SEEDS,
)
