"""What measuring restores of a model."""

import pytest
import torch
from torch import Tensor, nn

from backpass.sgs import measure_scalings


class GrowingBuffer(nn.Module):
    """Keeps positions for the largest input so far, as rotary embeddings and masks do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.how = how
        self.register_buffer("positions", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "resized":
            self.positions.resize_(x.shape[-1]).fill_(1)
        elif self.how == "data replaced":
            self.positions.data = torch.ones(x.shape[-1], dtype=torch.float64)
        else:
            self.positions = torch.ones(x.shape[-1])
        return self.conv(x)


@pytest.mark.parametrize("how", ["resized", "data replaced", "replaced"])
def test_buffers_that_change_their_size_are_restored(how: str) -> None:
    model = GrowingBuffer(how)
    positions = model.positions
    measure_scalings(model, [torch.randn(2, 1, 6, 6), torch.randn(2, 1, 7, 7)])
    assert model.positions is positions
    assert torch.equal(positions, torch.zeros(2))
