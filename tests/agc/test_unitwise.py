import math

import pytest
import torch
from torch import nn

from backpass.agc import adaptive_clip_grad_, unitwise_norm
from backpass.agc.unitwise import clip_factors
from reference.agc_cases import parameter


@pytest.mark.parametrize(
    ("shape", "norm_shape"),
    [
        ((), ()),
        ((7,), (1,)),
        ((7, 1, 1, 1), (1, 1, 1, 1)),
        ((1, 1), (1, 1)),
        ((7, 4), (7, 1)),
        ((7, 4, 3), (7, 1, 1)),
        ((7, 4, 3, 2), (7, 1, 1, 1)),
        ((7, 1, 3, 3), (7, 1, 1, 1)),
        ((7, 4, 3, 2, 2), (7, 1, 1, 1, 1)),
    ],
    ids=str,
)
def test_units_of_each_shape(shape, norm_shape):
    tensor = torch.randn(shape, dtype=torch.float64)
    norm = unitwise_norm(tensor)
    assert norm.shape == norm_shape
    units = tensor.flatten(1) if norm.numel() > 1 else tensor.reshape(1, -1)
    want = [math.sqrt(sum(value**2 for value in unit.tolist())) for unit in units]
    torch.testing.assert_close(norm.flatten(), torch.tensor(want, dtype=torch.float64))


def test_pythagorean_norms_are_exact():
    assert unitwise_norm(torch.tensor([[[3.0, 4.0]], [[7.0, 24.0]]])).flatten().tolist() == [5.0, 25.0]
    assert unitwise_norm(torch.tensor(-2.0)).item() == 2.0


@pytest.mark.parametrize("groups", [1, 2])
def test_units_of_a_transposed_convolution_are_its_output_channels(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False).double()
    norm = unitwise_norm(layer.weight.detach(), transposed_groups=groups).expand_as(layer.weight)
    for channel in range(6):
        # The weights of an output channel are those that its output depends on.
        layer.zero_grad()
        layer(torch.ones(1, 4, 2, 2, dtype=torch.float64))[:, channel].sum().backward()
        own = layer.weight.grad != 0
        assert own.sum() == 4 // groups * 9
        assert torch.allclose(norm[own], layer.weight[own].norm())


def test_norms_of_half_precision_are_taken_in_float32():
    tensor = torch.full((4, 100), 100.0, dtype=torch.float16)  # the squares overflow float16
    norm = unitwise_norm(tensor)
    assert norm.dtype == torch.float32
    assert norm.flatten().tolist() == [1000.0] * 4


def test_gains_are_one_unit():
    gain = parameter([[[[1.0]]], [[[0.0]]]], [[[[3.0]]], [[[4.0]]]])
    adaptive_clip_grad_([gain], clip_factor=0.5, head=None)
    torch.testing.assert_close(gain.grad.flatten(), torch.tensor([0.3, 0.4], dtype=torch.float64))


@pytest.mark.parametrize(("norm", "eps", "factor"), [(1e-5, 1e-6, 0.1), (1e-9, 1e-7, 0.1)])
def test_the_floor_of_a_gradients_norm_is_one_millionth(norm, eps, factor):
    assert clip_factors(torch.zeros(1), torch.tensor([norm]), 1.0, eps).item() == pytest.approx(factor)
