"""Claim: what the scaling follows from, on digits (SGS Table 3 in small)."""

from dataclasses import replace

from backpass.experiments import Entry, Study, get_recipe
from backpass.experiments.search import ALPHA_BETA_GRID
from backpass.experiments.tuning import Tuning
from claim import DIGITS_SEEDS, Claim

_DIGITS = get_recipe("digits")
_AUTOCORRELATION = replace(_DIGITS, sgs=replace(_DIGITS.sgs, measure="autocorrelation"))
_AS_ACB = replace(_DIGITS, sgs=replace(_DIGITS.sgs, branches=("3x3", "1x3", "3x1")))
_K = ("2", "3", "4", "5", "6", "7")
_PAIRS = tuple(f"{a:g},{b:g}" for a, b in ALPHA_BETA_GRID)

CLAIM = Claim(
    question="On digits with 300 training images, how do scalings from mutual information, from autocorrelation, of "
    "ACB's branches and of the best alpha and beta change the test accuracy?",
    study=Study(
        "Scalings on digits",
        (
            Entry("plain", "plain", "plain", _DIGITS),
            Entry("mi", "mutual information", "sgs", _DIGITS, "plain", space=(("sgs.k", _K),)),
            Entry(
                "autocorrelation",
                "autocorrelation",
                "sgs",
                _AUTOCORRELATION,
                "plain",
                space=(("sgs.k", ("1", "2", "3", "4", "5", "6")),),
            ),
            Entry("alpha-beta", "alpha and beta", "sgs", _DIGITS, "plain", space=(("sgs.alpha,sgs.beta", _PAIRS),)),
            Entry("acb", "fixed, as ACB", "sgs", _AS_ACB, "plain"),
        ),
        tuple(range(30)),
        ("the paper's grids for k; 6 pairs of alpha and beta are drawn from its 48, for an equal number of trials",),
        Tuning(seeds=(1000, 1001, 1002), trials=6),
    ),
    smallest=0.5,
    seeds_from=DIGITS_SEEDS,
)
