from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.reparam.conversion.probe import call, tensors


class Wired(nn.Module):
    """Two convolutions and two normalisations of one width, wired by a function."""

    def __init__(self, wiring: Callable[["Wired", Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.n, self.m = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.act = nn.ReLU()
        self.wiring = wiring

    def forward(self, x: Tensor) -> Any:
        return self.wiring(self, x)


def test_probes_are_tensors_or_arguments() -> None:
    add = Wired(lambda s, x: x + 1)
    one = torch.ones(1)
    assert call(add, one).item() == call(add, [one]).item() == call(add, {"x": one}).item() == 2.0
    with pytest.raises(InputError, match=r"a tensor, a sequence or a mapping of arguments, got int"):
        call(add, 3)
    assert [t.item() for t in tensors({"a": one, "b": [(one * 2,), "text", None]})] == [1.0, 2.0]
