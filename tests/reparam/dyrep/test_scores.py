import pytest
import torch
import torch.nn.functional as F

from backpass.errors import InputError
from backpass.reparam.dyrep.scores import conv_score
from reference.reparam_cases import images


def test_scores_of_half_precision_weights_do_not_overflow() -> None:
    weight = torch.full((64, 64), 16.0, dtype=torch.float16)
    assert conv_score(weight, weight, "synflow").item() == 64 * 64 * 256.0
    with pytest.raises(InputError, match=r"\(synflow, snip or grad_norm\), got 'random'"):
        conv_score(weight, weight, "random")


@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_synflow_before_a_normalisation_is_an_effect_of_its_epsilon(eps: float) -> None:
    x, kernel = images(8, 3, 6, 6).double(), images(4, 3, 3, 3, seed=2).double().requires_grad_()
    gamma = images(4, seed=3).double().requires_grad_()
    y = F.conv2d(x, kernel)
    out = F.batch_norm(y, None, None, gamma, None, training=True, eps=eps)
    (out.tanh() * images(*out.shape, seed=4).double()).sum().backward()
    sigma2 = y.detach().var((0, 2, 3), unbiased=False) + eps
    expected = (eps / sigma2 * gamma * gamma.grad).sum()
    score = conv_score(kernel, kernel.grad, "synflow")
    torch.testing.assert_close(score, expected, rtol=1e-6, atol=1e-12)
    assert score.abs() < 1e-2 * conv_score(kernel, kernel.grad, "snip")
