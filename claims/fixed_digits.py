"""Claim: the methods against plain training in the default setting of ``backpass compare``."""

from backpass.experiments import compare_study, get_recipe
from claim import DIGITS_SEEDS, Claim

CLAIM = Claim(
    question="In the default setting of backpass compare (digits, 300 training images, 20 epochs), how does each "
    "method change the test accuracy?",
    study=compare_study(get_recipe("digits"), ("plain", "sgs", "pgt", "sgs+pgt"), range(30)),
    smallest=0.5,
    seeds_from=DIGITS_SEEDS,
)
