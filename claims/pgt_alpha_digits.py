"""Claim: PGT over alpha, with short and long schedules, on digits."""

from dataclasses import replace

from backpass.experiments import Entry, Study, get_recipe
from claim import DIGITS_SEEDS, Claim

_DIGITS = get_recipe("digits")


def _entries(epochs: int) -> tuple[Entry, ...]:
    recipe = replace(_DIGITS, epochs=epochs)
    plain = f"plain-{epochs}"
    return (
        Entry(plain, f"{epochs} epochs, plain", "plain", recipe),
        *(
            Entry(
                f"alpha={alpha:g}-{epochs}",
                f"{epochs} epochs, alpha = {alpha:g}",
                "pgt",
                replace(recipe, pgt=replace(recipe.pgt, alpha=alpha)),
                plain,
            )
            for alpha in (0.1, 0.3, 0.6)
        ),
    )


CLAIM = Claim(
    question="On digits with 300 training images, for which alpha does PGT change the test accuracy after 5, 20 and 80 "
    "epochs (45, 180 and 720 steps)?",
    study=Study("PGT over alpha and epochs on digits", (*_entries(5), *_entries(20), *_entries(80)), tuple(range(30))),
    smallest=0.5,
    seeds_from=DIGITS_SEEDS,
)
