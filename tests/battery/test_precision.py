"""Numbers of every width, with and without a loss scale."""

from functools import partial

import pytest
import torch

from battery.loop import DEVICES, Loop, examine
from battery.rows import Refusing, Row

HALF = Loop(dtype=torch.float32, autocast=torch.float16, loss_scale=2.0**10)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_model_in(row: Row, dtype: str) -> None:
    outcome = examine(row, Loop(dtype=getattr(torch, dtype), steps=1))
    assert {g.dtype for g in outcome.gradients.values()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_to_bfloat16(row: Row, device: str) -> None:
    outcome = examine(row, Loop(device=device, dtype=torch.float32, autocast=torch.bfloat16))
    assert {g.dtype for g in outcome.gradients.values()} == {torch.float32}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [1.0, 2.0**10, 2.0**16], ids=["scale_1", "scale_1024", "scale_65536"])
def test_autocast_to_float16_with_grad_scaler(row: Row, scale: float, device: str) -> None:
    examine(row, HALF.but(loss_scale=scale, device=device))


def test_grad_scaler_unscales_after_the_method(row: Row) -> None:
    if not row.linear:
        pytest.skip("AGC compares gradients with weights, so it comes after unscaling")
    examine(row, HALF.but(unscale_first=False))


@pytest.mark.parametrize("unscale_first", [True, False], ids=["unscale_called", "unscaled_by_step"])
def test_grad_scaler_attached(row: Row, unscale_first: bool) -> None:
    examine(row, HALF.but(how="attached", unscale_first=unscale_first))


def test_grad_scaler_attached_to_a_fused_optimizer(row: Row, refusing: Refusing) -> None:
    loop = HALF.but(how="attached", optimizer=partial(torch.optim.SGD, lr=0.5, fused=True))
    examine(row, loop)
    with refusing(row, "attached, fused, under a GradScaler"):
        # Fused steps unscale inside, so the gradients keep the scale and only the weights can be compared.
        state = loop.but(unscale_first=False).run(row.loss.ours, row.ours).state
        expected = loop.plainly().run(row.loss.definition, row.definition).state
        torch.testing.assert_close(state, expected, rtol=1e-3, atol=1e-4)


def test_grad_scaler_skips_a_step_that_overflows(row: Row, refusing: Refusing) -> None:
    loop = HALF.but(loss_scale=2.0**40, steps=1)
    start = loop.new_model()
    with refusing(row, "gradients that overflow"):
        outcome = loop.run(row.loss.ours, row.ours)
        assert not all(g.isfinite().all() for g in outcome.gradients.values())
        for name, parameter in start.named_parameters():
            assert torch.equal(outcome.state[name], parameter), name
    attached = loop.but(how="attached", unscale_first=False).run(row.loss.ours, row.ours)
    assert all(torch.equal(attached.state[name], p) for name, p in start.named_parameters())
