"""What is left of a scaling in the way that an optimizer moves a kernel."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from backpass.sgs import SpatialGradientScaling

G = torch.tensor([[0.5, 0.5, 0.5], [0.5, 5.0, 0.5], [0.5, 0.5, 0.5]])  # the centre is 10 times the others


def moved(
    make: Callable[..., Optimizer], scaling: Tensor | None, apply: Literal["gradient", "update"], *, closure: bool
) -> Tensor:
    """Return how far 20 steps move the second kernel."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3)]
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(16 * 36, 5)).double()
    start = model[2].weight.detach().clone()
    sgs = SpatialGradientScaling(model, scaling=G, apply=apply)
    optimizer = make(model.parameters())
    if scaling is not None and apply == "update":
        sgs.attach(optimizer)

    def backward(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(16, 3, 8, 8, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.randint(5, (16,), generator=generator))
        loss.backward()
        if scaling is not None and apply == "gradient":
            sgs.scale_gradients()
        return loss

    for seed in range(20):
        if closure:
            optimizer.step(lambda seed=seed: backward(seed))
        else:
            backward(seed)
            optimizer.step()
    return model[2].weight.detach() - start


def left_of_ten(
    make: Callable[..., Optimizer], apply: Literal["gradient", "update"] = "gradient", *, closure: bool = False
) -> float:
    """Return how much farther the centre moves than the other taps, relative to plain training: 10 is all, 1 is none.

    Args:
        make: makes the optimizer from parameters.
        apply: what is scaled.
        closure: ``step`` needs a closure.
    """
    plain, scaled = (moved(make, scaling, apply, closure=closure).square().sum((0, 1)).sqrt() for scaling in (None, G))
    ratio = scaled / plain
    return float(8 * ratio[1, 1] / (ratio.sum() - ratio[1, 1]))
