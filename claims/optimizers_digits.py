"""Claim: SGS with other optimizers on digits (SGS Table 5 in small)."""

from dataclasses import replace

from backpass.experiments import Entry, Study, get_recipe
from backpass.experiments.tuning import Tuning, parse_space
from backpass.training.recipe import OptimizerSettings
from claim import DIGITS_SEEDS, Claim

_DIGITS = get_recipe("digits")
# Rates around those that training on digits needs, by powers of about 3, five for each optimizer.
_OPTIMIZERS = {
    "SGD": (OptimizerSettings("sgd", momentum=0.0), ("0.03", "0.1", "0.3", "1", "3")),
    "SGD + Momentum": (OptimizerSettings("sgd"), ("0.003", "0.01", "0.03", "0.1", "0.3")),
    "Adam": (OptimizerSettings("adam"), ("3e-4", "1e-3", "3e-3", "1e-2", "3e-2")),
    "AdamW": (OptimizerSettings("adamw"), ("3e-4", "1e-3", "3e-3", "1e-2", "3e-2")),
    "Adagrad": (OptimizerSettings("adagrad"), ("3e-3", "1e-2", "3e-2", "1e-1", "3e-1")),
}


def _entries(name: str) -> list[Entry]:
    optimizer, rates = _OPTIMIZERS[name]
    recipe, space = replace(_DIGITS, optimizer=optimizer), parse_space([f"lr={','.join(rates)}"])
    on_update = replace(recipe, sgs=replace(recipe.sgs, apply="update"))
    key = name.replace(" + ", "-")
    entries = [
        Entry(key, f"{name}, plain", "plain", recipe, space=space),
        Entry(f"{key}-sgs", f"{name}, SGS", "sgs", recipe, key, space=space),
    ]
    if name == "Adagrad":
        entries.append(Entry(f"{key}-update", f"{name}, SGS on the update", "sgs", on_update, key, space=space))
    return entries


CLAIM = Claim(
    question="On digits with 300 training images, with the learning rate tuned for each, how does SGS change the test "
    "accuracy under SGD, SGD with momentum, Adam, AdamW and Adagrad?",
    study=Study(
        "SGS and optimizers on digits",
        tuple(entry for name in _OPTIMIZERS for entry in _entries(name)),
        tuple(range(30)),
        tuning=Tuning(seeds=(1000, 1001, 1002)),
    ),
    smallest=0.5,
    seeds_from=DIGITS_SEEDS,
)
