"""SGS paper, appendix A.8: parallel branches trained and added up are one kernel with a scaled gradient."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backpass.sgs import SpatialGradientScaling, scaling_from_branches

BRANCHES = ["3x3", "3x1", "1x3"]
STEPS = 30


class Branches(nn.Module):
    """Parallel convolutions without bias or normalisation."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, 3), (3, 1), (1, 3)]
        self.convs = nn.ModuleList(
            nn.Conv2d(2, 3, size, padding=(size[0] // 2, size[1] // 2), bias=False) for size in sizes
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([conv(x) for conv in self.convs]).sum(0)

    def kernel(self) -> Tensor:
        kernels = [conv.weight.detach() for conv in self.convs]
        return sum(
            (F.pad(w, [p for s in (w.shape[3], w.shape[2]) for p in [(3 - s) // 2] * 2]) for w in kernels),
            start=torch.zeros(()),
        )


def train(
    model: nn.Module, *, momentum: float, nesterov: bool, weight_decay: float, before_step: Callable[[], None]
) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )
    for _ in range(STEPS):
        x = torch.randn(4, 2, 6, 6, generator=generator, dtype=torch.float64)
        target = torch.randn(4, 3, 6, 6, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        before_step()
        optimizer.step()


def pair() -> tuple[Branches, nn.Conv2d]:
    torch.manual_seed(0)
    branches = Branches().double()
    single = nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
    with torch.no_grad():
        single.weight.copy_(branches.kernel())
    return branches, single


@pytest.mark.parametrize(
    ("momentum", "nesterov", "weight_decay"),
    [(0.0, False, 0.0), (0.9, False, 0.0), (0.9, True, 0.0), (0.9, True, 0.01)],
)
def test_branches_equal_one_kernel_with_a_scaled_gradient(momentum: float, nesterov: bool, weight_decay: float) -> None:
    """The decay λ of both sides is the same, and it is not scaled.

    Branch b steps by ``M_b * g + λ w_b`` with its mask M_b. The sum of the branches therefore steps by
    ``(Σ M_b) * g + λ Σ w_b = G * g + λ W``: the gradient is scaled, then the optimizer adds the plain decay of W.
    """
    branches, single = pair()
    start = single.weight.detach().clone()
    sgs = SpatialGradientScaling(single)
    sgs.scalings["weight"].copy_(scaling_from_branches(BRANCHES))
    settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    train(branches, **settings, before_step=lambda: None)  # type: ignore[arg-type]
    train(single, **settings, before_step=sgs.scale_gradients)  # type: ignore[arg-type]
    torch.testing.assert_close(single.weight.detach(), branches.kernel(), rtol=0, atol=1e-12)
    assert (single.weight.detach() - start).abs().max() > 1e-2


def test_without_the_scaling_or_with_a_scaled_decay_they_part() -> None:
    settings = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    branches, plain = pair()
    train(branches, **settings, before_step=lambda: None)  # type: ignore[arg-type]
    train(plain, **settings, before_step=lambda: None)  # type: ignore[arg-type]
    assert (plain.weight - branches.kernel()).abs().max() > 1e-3

    _, decayed = pair()
    g = scaling_from_branches(BRANCHES)

    def scale_gradient_and_decay() -> None:
        assert decayed.weight.grad is not None
        decayed.weight.grad.add_(decayed.weight.detach(), alpha=0.01).mul_(g)

    settings["weight_decay"] = 0.0
    train(decayed, **settings, before_step=scale_gradient_and_decay)  # type: ignore[arg-type]
    assert (decayed.weight - branches.kernel()).abs().max() > 1e-3
