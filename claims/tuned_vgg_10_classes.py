"""Claim: the methods against plain training, tuned, narrow VGG, 10 classes."""

from backpass.experiments import compare_study
from backpass.experiments.tuning import Tuning, parse_space
from claim import CPU_SEEDS, SPACE, Claim
from settings import TEN_CLASSES, on_cpu

CLAIM = Claim(
    question="With learning rate and weight decay tuned for each method with the same budget, how does each change the "
    "test accuracy of a narrow VGG-11 on 10 classes with 1,250 images each?",
    study=compare_study(
        on_cpu(TEN_CLASSES),
        ("plain", "sgs", "pgt", "sgs+pgt"),
        range(10),
        space=parse_space(SPACE),
        tuning=Tuning(seeds=(1000,)),
    ),
    smallest=1.0,
    seeds_from=CPU_SEEDS,
)
