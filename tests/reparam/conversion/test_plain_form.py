import pytest
import torch
from torch import nn

from backpass.errors import BackpassWarning, InputError, StateError
from backpass.reparam import (
    BLOCKS,
    DyRepBlock,
    reparameterize,
    to_plain,
)
from reference.reparam_cases import Residual, X, assert_same, images, randomise, trained


@pytest.mark.parametrize("name", BLOCKS)
def test_the_plain_form_loads_strictly_into_the_plain_model(name: str) -> None:
    model, plain = trained(name), Residual()
    plain.load_state_dict(to_plain(model).state_dict(), strict=True)
    assert_same(plain, model)
    assert not plain.conv2.bias.any()
    assert isinstance(model.conv1, BLOCKS[name])


def test_the_plain_form_needs_eval_mode_and_a_place_for_the_bias() -> None:
    with pytest.raises(StateError, match=r"call model.eval\(\) first"):
        to_plain(trained().train())
    grown = nn.Sequential(DyRepBlock(nn.Conv2d(3, 3, 3, bias=False))).eval()
    with pytest.raises(InputError, match=r"got '0' with neither, .*; use fuse\(model\)"):
        to_plain(grown)
    with_bias = randomise(nn.Sequential(DyRepBlock(nn.Conv2d(3, 3, 3)))).eval()
    torch.testing.assert_close(to_plain(with_bias)(X), with_bias(X), rtol=1e-4, atol=1e-4)


BATCHES = [images(16, 3, 9, 9, seed=seed) for seed in range(4)]


@torch.no_grad()
def drift(model: nn.Module) -> float:
    """Return how far passes in train mode move the output in eval mode, as a fraction of its spread over the images."""
    before = model.eval()(BATCHES[0])
    for x in BATCHES * 20:
        model.train()(x)
    return ((model.eval()(BATCHES[0]) - before).norm() / (before - before.mean(0)).norm()).item()


@pytest.mark.parametrize("name", BLOCKS)
def test_with_batches_the_plain_form_is_a_start_for_training(name: str) -> None:
    model = trained(name)
    drift(model)  # its statistics are now those of the batches
    plain = to_plain(model, BATCHES)
    assert_same(plain, model)
    assert drift(plain) < 0.05 < 1 < drift(to_plain(model))


def test_the_restored_statistics_are_those_of_the_convolutions_output() -> None:
    model = trained()
    plain = to_plain(model, ({"pixels": x, "labels": None} for x in BATCHES), forward=lambda b: model(b["pixels"]))
    outputs = [plain.conv1(x) for x in BATCHES]
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    var = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
    torch.testing.assert_close(plain.bn1.running_mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.bn1.running_var, var, rtol=1e-4, atol=1e-4)
    assert not any(module._forward_hooks for module in (*model.modules(), *plain.modules()))


def test_a_batch_with_one_value_a_channel_has_no_variance() -> None:
    model = trained("acb")
    larger, single = BATCHES[0], images(1, 3, 1, 1, seed=9)
    expected, found = (to_plain(model, batches).state_dict() for batches in ([larger], [larger, single]))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_blocks_that_no_batch_reaches_are_named() -> None:
    model = trained()
    with pytest.warns(
        BackpassWarning, match=r"some that leave out 'conv1' \(2 such blocks\), whose normalisation"
    ) as seen:
        plain = to_plain(model, [])
    assert seen[0].filename == __file__
    assert_same(plain, model)
    assert plain.bn1.running_var.tolist() == [1.0] * 8
    with pytest.raises(InputError, match=r"expected an iterable of batches, got one tensor"):
        to_plain(model, BATCHES[0])


def test_a_placeholder_that_is_gone_is_named() -> None:
    model = reparameterize(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)), "acb").eval()
    with pytest.raises(InputError, match=r"placeholder of the normalisation that '0' took .* without it; keep the"):
        to_plain(nn.Sequential(model[0]).eval())
