"""Claim: the methods against plain training on digits, with learning rate and decay tuned for each."""

from backpass.experiments import compare_study, get_recipe
from backpass.experiments.tuning import Tuning, parse_space
from claim import DIGITS_SEEDS, Claim

CLAIM = Claim(
    question="On digits with 300 training images, with learning rate and weight decay tuned for each method with the "
    "same budget, how does each method change the test accuracy?",
    study=compare_study(
        get_recipe("digits"),
        ("plain", "sgs", "pgt", "sgs+pgt"),
        range(30),
        space=parse_space(["lr=0.0125,0.025,0.05,0.1,0.2,0.4", "weight_decay=5e-4,5e-3"]),
        tuning=Tuning(seeds=(1000, 1001, 1002)),
    ),
    smallest=0.5,
    seeds_from=DIGITS_SEEDS,
)
