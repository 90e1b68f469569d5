import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.reparam.blocks.algebra import (
    average_kernel,
    chain_pointwise,
    embed_kernel,
    identity_kernel,
    sum_parallel,
)
from backpass.reparam.blocks.batch_norm import fold
from reference.reparam_cases import images, randomise


def wide(*shape: int, seed: int) -> Tensor:
    return images(*shape, seed=seed).double()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_folding_equals_convolution_then_batch_norm(groups: int) -> None:
    x, kernel, norm = wide(2, 4, 7, 6, seed=0), wide(8, 4 // groups, 3, 5, seed=1), nn.BatchNorm2d(8, eps=1e-3)
    norm = randomise(norm).double().eval()
    for bias in (wide(8, seed=2), None):
        expected = norm(F.conv2d(x, kernel, bias, groups=groups))
        folded = fold(norm, kernel, bias)
        torch.testing.assert_close(F.conv2d(x, *folded, groups=groups), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("size", [(3, 3), (1, 5), (4, 3)])
def test_a_chain_equals_the_two_convolutions_with_the_border_of_the_first_bias(
    groups: int, size: tuple[int, int]
) -> None:
    x = wide(2, 4, 7, 6, seed=0)
    k1, b1 = wide(12, 4 // groups, 1, 1, seed=1), wide(12, seed=2)
    k2, b2 = wide(8, 12 // groups, *size, seed=3), wide(8, seed=4)
    padded = F.pad(x, (1, 1, 2, 2))
    expected = F.conv2d(F.conv2d(padded, k1, b1, groups=groups), k2, b2, groups=groups)
    kernel, bias = chain_pointwise(k1, b1, k2, b2, groups)
    actual = F.conv2d(x, kernel, bias, padding=(2, 1), groups=groups)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_average_and_identity_kernels_equal_pooling_and_their_input(groups: int) -> None:
    x = wide(2, 4, 7, 6, seed=0)
    average = average_kernel(4, (3, 5), groups, dtype=x.dtype)
    expected = F.avg_pool2d(x, (3, 5), stride=(2, 1), padding=(1, 2))
    actual = F.conv2d(x, average, stride=(2, 1), padding=(1, 2), groups=groups)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    identity = identity_kernel(4, groups, dtype=x.dtype)
    assert torch.equal(F.conv2d(x, identity, groups=groups), x)


def test_embedding_keeps_the_function_of_a_rectangular_kernel() -> None:
    x, kernel = wide(2, 4, 9, 8, seed=0), wide(3, 4, 1, 3, seed=1)
    expected = F.conv2d(x, kernel, padding=(0, 1))
    actual = F.conv2d(x, embed_kernel(kernel, (5, 3)), padding=(2, 1))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_parallel_kernels_and_biases_add_up() -> None:
    one = torch.ones(2, 2, 1, 1), torch.tensor([1.0, 2.0])
    kernel, bias = sum_parallel([one, one, one])
    assert kernel.unique().tolist() == [3.0]
    assert bias.tolist() == [3.0, 6.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_algebra_keeps_the_dtype(dtype: torch.dtype) -> None:
    kernel, vector = torch.ones(2, 2, 1, 1, dtype=dtype), torch.ones(2, dtype=dtype)
    for kernels in (
        chain_pointwise(kernel, vector, kernel, vector),
        sum_parallel([(kernel, vector)]),
    ):
        assert {tensor.dtype for tensor in kernels} == {dtype}


def test_the_algebra_passes_gradients_to_every_factor() -> None:
    factors = [wide(2, 2, 1, 1, seed=0), wide(2, seed=1), wide(3, 2, 3, 3, seed=2), wide(3, seed=3)]
    factors = [factor.requires_grad_() for factor in factors]
    assert torch.autograd.gradcheck(chain_pointwise, tuple(factors))


def test_a_kernel_without_a_centred_position_is_refused_with_the_shapes() -> None:
    with pytest.raises(InputError, match=r"got a kernel of 2x2 for 3x3, where it has no centred position"):
        embed_kernel(torch.ones(1, 1, 2, 2), (3, 3))
    with pytest.raises(InputError, match=r"got a kernel of 5x5 for 3x3, where it has no centred position"):
        embed_kernel(torch.ones(1, 1, 5, 5), (3, 3))
