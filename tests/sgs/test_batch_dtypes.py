"""The dtype in which a model receives measuring batches."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backpass._internal.batches import forward_on
from backpass.errors import InputError
from backpass.sgs import SpatialGradientScaling


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3))


@pytest.mark.parametrize("kernels", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_is_cast_to_the_dtype_of_the_kernels(kernels: torch.dtype) -> None:
    received = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(1))
            self.conv = nn.Conv2d(1, 1, 3, dtype=kernels)

        def forward(self, x: Tensor) -> None:
            received.append(x)

    forward = forward_on(Model(), torch.device("cpu"))
    batches = [torch.zeros(2, dtype=d) for d in (torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.long)]
    for batch in batches:
        forward(batch)
    assert [x.dtype for x in received] == [kernels] * 3 + [torch.uint8, torch.long]
    assert all((x is batch) == (x.dtype == batch.dtype) for x, batch in zip(received, batches, strict=True))


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (torch.float16, torch.float32, {torch.float16, torch.float32}),
        (torch.float32, torch.bfloat16, {torch.float32, torch.bfloat16}),
        (torch.float8_e4m3fn, torch.bfloat16, {torch.bfloat16}),
        (torch.float8_e4m3fn, torch.float8_e4m3fn, {torch.float16, torch.bfloat16, torch.float32, torch.float64}),
    ],
)
def test_the_input_keeps_a_dtype_that_some_kernel_has(
    first: torch.dtype, second: torch.dtype, kept: set[torch.dtype]
) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernels = nn.ParameterList(nn.Parameter(torch.zeros(1, 1, dtype=d), False) for d in (first, second))

        def forward(self, x: Tensor) -> torch.dtype:
            return x.dtype

    forward = forward_on(Model(), torch.device("cpu"))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        expected = dtype if dtype in kept else next(d for d in (first, second) if d in kept)
        assert forward(torch.zeros(2, dtype=dtype)) == expected


def test_a_head_in_float32_leaves_the_batches_of_a_bfloat16_backbone() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = net().bfloat16()
            self.head = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.backbone(x).flatten(1).float())

    model, x = Model(), torch.randn(4, 1, 6, 6)
    sgs = SpatialGradientScaling(model)
    sgs.update([x])
    expected = SpatialGradientScaling(model.backbone)
    expected.update([x.bfloat16()])
    assert all(torch.equal(g, expected.scalings[name.removeprefix("backbone.")]) for name, g in sgs.scalings.items())


def test_a_frozen_teacher_in_half_precision_leaves_the_batches_of_the_student() -> None:
    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Conv2d(1, 2, 3).half().requires_grad_(False)
            self.student = net()

        def forward(self, x: Tensor) -> Tensor:
            return self.student(x)

    model, x = Distilled(), torch.randn(4, 1, 6, 6)
    sgs = SpatialGradientScaling(model, include=["student.*"])
    sgs.update([x])
    expected = SpatialGradientScaling(model.student)
    expected.update([x])
    assert all(torch.equal(g, expected.scalings[name.removeprefix("student.")]) for name, g in sgs.scalings.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_in_another_precision_is_measured_on_the_batches_of_training(
    dtype: torch.dtype, autocast: bool
) -> None:
    model, x = net().to(dtype), torch.randn(4, 1, 6, 6)

    def measured(batch: Any, forward: Any = None) -> dict[str, Tensor]:
        sgs = SpatialGradientScaling(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            sgs.update([batch], forward)
        return sgs.scalings

    expected = measured(x.to(dtype))
    for scalings in (measured(x), measured({"pixel_values": x}, "pixel_values")):
        assert all(torch.equal(g, expected[name]) for name, g in scalings.items())
    if not autocast:
        with pytest.raises(InputError, match="the model failed on measuring batch 0"):
            measured(x, model)
