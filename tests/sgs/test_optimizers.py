"""What is left of a scaling of the gradient in the update of each kind of optimizer: the table of the method card."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backpass.sgs import SpatialGradientScaling
from backpass.sgs.optimizers import normalizes_gradients

timm_optim = pytest.importorskip("timm.optim")

G = torch.tensor([[0.5, 0.5, 0.5], [0.5, 5.0, 0.5], [0.5, 0.5, 0.5]])
KINDS = {
    "SGD": partial(torch.optim.SGD, lr=1e-2, momentum=0.9),
    "LARS": partial(timm_optim.Lars, lr=1e-2),
    "Adam": partial(torch.optim.Adam, lr=1e-4),
    "AdamW": partial(torch.optim.AdamW, lr=1e-4),
    "NAdam": partial(torch.optim.NAdam, lr=1e-4),
    "RMSprop": partial(torch.optim.RMSprop, lr=1e-4),
    "Adafactor": partial(timm_optim.Adafactor, lr=1e-4),
    "LAMB": partial(timm_optim.Lamb, lr=1e-3),
    "Adan": partial(timm_optim.Adan, lr=1e-4),
    "ADOPT": partial(timm_optim.Adopt, lr=1e-4),
    "Lion": partial(timm_optim.Lion, lr=1e-4),
    "MADGRAD": partial(timm_optim.MADGRAD, lr=1e-3),
    "Muon": partial(timm_optim.Muon, lr=1e-3),
}
CARD = Path(__file__).parents[2] / "src/backpass/sgs/README.md"


def moved(kind: Any, scaling: Tensor | None) -> Tensor:
    """Return how far 20 steps move the second kernel."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3)]
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(16 * 36, 5)).double()
    sgs = SpatialGradientScaling(model, scaling=G)
    optimizer, start = kind(model.parameters()), model[2].weight.detach().clone()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(16, 3, 8, 8, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.randint(5, (16,), generator=generator)).backward()
        if scaling is not None:
            sgs.scale_gradients()
        optimizer.step()
    return model[2].weight.detach() - start


@pytest.mark.parametrize("name", KINDS)
def test_what_is_left_of_a_scaling_is_what_the_card_says(name: str) -> None:
    plain, scaled = (moved(KINDS[name], scaling).square().sum((0, 1)).sqrt() for scaling in (None, G))
    ratio = scaled / plain
    left = float(8 * ratio[1, 1] / (ratio.sum() - ratio[1, 1]))
    (printed,) = re.findall(rf"^ *\|.*\b{name}\b.* \| ([\d.]+) \|", CARD.read_text(encoding="utf-8"), re.MULTILINE)
    assert left == pytest.approx(float(printed), abs=0.06)
    assert normalizes_gradients(KINDS[name]([nn.Parameter(torch.ones(2, 2))])) == (left < 1.1)
