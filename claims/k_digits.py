"""Claim: accuracy over the strength k of SGS on digits (SGS Figure 8 in small)."""

from dataclasses import replace

from backpass.experiments import Entry, Study, get_recipe
from claim import DIGITS_SEEDS, Claim

_DIGITS = get_recipe("digits")

CLAIM = Claim(
    question="On digits with 300 training images, for which k does SGS change the test accuracy?",
    study=Study(
        "SGS over k on digits",
        (
            Entry("plain", "plain", "plain", _DIGITS),
            *(
                Entry(f"k={k:g}", f"k = {k:g}", "sgs", replace(_DIGITS, sgs=replace(_DIGITS.sgs, k=k)), "plain")
                for k in (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
            ),
        ),
        tuple(range(30)),
    ),
    smallest=0.5,
    seeds_from=DIGITS_SEEDS,
)
