"""What is left of a scaling of the gradient in the update of each kind of optimizer: the table of the method card."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from backpass.sgs.optimizers import normalizes_gradients
from sgs.movement import left_of_ten

timm_optim = pytest.importorskip("timm.optim")

KINDS = {
    "SGD": (torch.optim, "SGD", {"lr": 1e-2, "momentum": 0.9}),
    "LARS": (timm_optim, "Lars", {"lr": 1e-2}),
    "Adam": (torch.optim, "Adam", {"lr": 1e-4}),
    "AdamW": (torch.optim, "AdamW", {"lr": 1e-4}),
    "NAdam": (torch.optim, "NAdam", {"lr": 1e-4}),
    "RMSprop": (torch.optim, "RMSprop", {"lr": 1e-4}),
    "Adafactor": (timm_optim, "Adafactor", {"lr": 1e-4}),
    "LAMB": (timm_optim, "Lamb", {"lr": 1e-3}),
    "Adan": (timm_optim, "Adan", {"lr": 1e-4}),
    "ADOPT": (timm_optim, "Adopt", {"lr": 1e-4}),
    "Lion": (timm_optim, "Lion", {"lr": 1e-4}),
    "MADGRAD": (timm_optim, "MADGRAD", {"lr": 1e-3}),
    "Muon": (timm_optim, "Muon", {"lr": 1e-3}),
}
CARD = Path(__file__).parents[2] / "src/backpass/sgs/README.md"


@pytest.mark.parametrize("name", KINDS)
def test_what_is_left_of_a_scaling_is_what_the_card_says(name: str) -> None:
    library, kind, options = KINDS[name]
    if not hasattr(library, kind):
        pytest.skip(f"this version of {library.__name__} has no {kind}")
    make = partial(getattr(library, kind), **options)
    left = left_of_ten(make)
    (printed,) = re.findall(rf"^ *\|.*\b{name}\b.* \| ([\d.]+) \|", CARD.read_text(encoding="utf-8"), re.MULTILINE)
    assert left == pytest.approx(float(printed), abs=0.06)
    assert normalizes_gradients(make([nn.Parameter(torch.ones(2, 2))])) == (left < 1.1)
