"""Convolutions followed by timm's ``BatchNormAct2d``, normalisation and activation in one module."""

import copy

import pytest
import torch
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.reparam import (
    BLOCKS,
    ACBlock,
    DyRep,
    block_map,
    branch_scales,
    equivalent_scaling,
    fuse,
    load_state_dict,
    plan_conversion,
    reparameterize,
    restore_blocks,
    to_plain,
)
from backpass.reparam.conversion.batch_norm_act import is_remainder, normalisation, rejoin, remainder
from reference.reparam_cases import images, randomise

layers = pytest.importorskip("timm.layers")

X = images(4, 3, 9, 9)


class Halved(nn.Module):
    """Stands for a dropout: it does something in eval mode too, so that its place can be told."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2 + 1


def net(act: type[nn.Module] = nn.PReLU, **options) -> nn.Module:
    """Two convolutions, the second with a bias, whose normalisations have an activation, and one with none."""
    norm = layers.BatchNormAct2d
    return randomise(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False),
            norm(6, act_layer=act, **options),
            nn.Conv2d(6, 6, 3, padding=1),
            norm(6, act_layer=act, drop_layer=Halved, **options),
            nn.Conv2d(6, 4, 3, padding=1, bias=False),
            norm(4, apply_act=False, **options),
        )
    )


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("probe", [None, X])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_normalisation_moves_into_the_block_and_the_activation_stays(name: str, probe: Tensor | None) -> None:
    plain = net()
    model = reparameterize(plain, name, probe=probe, inplace=True)
    assert [type(layer) for layer in model] == [BLOCKS[name], nn.Sequential] * 3
    assert [[type(layer) for layer in model[i]] for i in (1, 3, 5)] == [
        [nn.Identity, nn.PReLU],
        [Halved, nn.PReLU],
        [nn.Identity, nn.Identity],
    ]
    assert {type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {nn.BatchNorm2d}


def test_parameters_buffers_and_names_stay() -> None:
    plain = net(eps=1e-3, momentum=0.3)
    norm, act = plain[1], plain[1].act
    model = reparameterize(plain, "acb", inplace=True)
    main = model[0].main.norm
    for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        assert getattr(main, key) is getattr(norm, key), key
    assert (main.eps, main.momentum) == (1e-3, 0.3)
    assert model[1].act is act
    assert "1.act.weight" in model.state_dict()


@pytest.mark.parametrize("training", [False, True])
def test_a_block_of_one_branch_computes_what_the_layers_did(training: bool) -> None:
    plain = net().train(training)
    model = reparameterize(plain, "dbb_dyrep", branches=["kxk"])
    expected = plain(X)
    close(model(X), expected)
    for i in (0, 2, 4):  # updated in train mode, as they were in eval mode
        close(model[i].main.norm.running_var, plain[i + 1].running_var)
    assert model[1].training == training


@pytest.mark.parametrize("act", [nn.ReLU, nn.PReLU, nn.SiLU])
@pytest.mark.parametrize("name", BLOCKS)
def test_fused_models_are_convolutions_and_activations(name: str, act: type[nn.Module]) -> None:
    model = randomise(reparameterize(net(act), name), seed=3).eval()
    fused = fuse(model, probe=X)
    close(fused(X), model(X))
    assert [type(layer) for layer in fused] == [nn.Conv2d, nn.Sequential] * 3
    assert (model(X) - model(X).mean()).abs().max() > 0.1


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_reach_every_parameter_behind_an_activation_in_place(name: str) -> None:
    model = reparameterize(net(nn.ReLU, inplace=True), name).train()
    model(X).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", BLOCKS)
def test_a_training_checkpoint_loads_into_every_form(name: str) -> None:
    model = randomise(reparameterize(net(), name), seed=3).eval()
    with torch.no_grad():
        model[1].act.weight.fill_(0.7)  # the activation's own parameter is part of the checkpoint
    state, blocks = model.state_dict(), block_map(model)
    for target in (net(), fuse(reparameterize(net(), name).eval()), reparameterize(net(), name)):
        load_state_dict(target, state, blocks=blocks)
        close(target.eval()(X), model(X))
    plain = net()
    plain.load_state_dict(to_plain(model).state_dict(), strict=True)
    close(plain.eval()(X), model(X))
    assert {type(plain[i]) for i in (1, 3, 5)} == {type(to_plain(model)[i]) for i in (1, 3, 5)}


def test_blocks_are_restored_from_the_fused_form_and_made_plain_again() -> None:
    model = randomise(reparameterize(net(momentum=0.3), "acb"), seed=3).eval()
    restored = restore_blocks(fuse(model), block_map(model)).eval()
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored(X), model(X))
    assert block_map(restored) == block_map(model)
    plain = to_plain(restored)
    close(plain(X), model(X))
    assert type(plain[3]) is layers.BatchNormAct2d
    assert plain[3].momentum == 0.3


def test_training_goes_on_from_the_blocks_as_from_the_layers() -> None:
    """One branch is the layer itself: both must take the same steps, statistics included."""
    plain = net().train()
    model = reparameterize(plain, "dbb_dyrep", branches=["kxk"])
    for module in (plain, model):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
        for step in range(5):
            optimizer.zero_grad()
            module(images(4, 3, 9, 9, seed=step)).square().mean().backward()
            optimizer.step()
    close(model.eval()(X), plain.eval()(X))
    assert not torch.allclose(plain(X), net().eval()(X), atol=0.05)


def test_dyrep_grows_before_such_normalisations_and_keeps_the_function() -> None:
    model = net(nn.ReLU, inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    dyrep = DyRep(model, optimizer, every=1, metric="snip")
    grown = []
    for step in range(3):
        model.train()(images(4, 3, 9, 9, seed=step)).square().mean().backward()
        dyrep.record()
        optimizer.step()
        optimizer.zero_grad()
        expected = model.eval()(X)
        grown.append(dyrep.adjust([images(4, 3, 9, 9, seed=9)]).grown)
        close(model.eval()(X), expected)
    assert len(set(grown)) == 3
    assert {type(model[i]) for i in (1, 3, 5)} == {layers.BatchNormAct2d}
    fused = fuse(model, probe=X)
    close(fused(X), model(X))
    resumed = net(nn.ReLU, inplace=True)
    optimizer = torch.optim.SGD(resumed.parameters(), lr=0.01, momentum=0.9)
    DyRep(resumed, optimizer, every=1, metric="snip").load_state_dict(dyrep.state_dict())
    resumed.load_state_dict(model.state_dict())
    assert torch.equal(resumed.eval()(X), model(X))


def test_frozen_branches_before_an_activation_equal_one_scaled_gradient() -> None:
    model = reparameterize(net(nn.SiLU), "acb").double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    single = fuse(model)
    scaling = {i: equivalent_scaling(model[i], branch_scales(model[i])) for i in (0, 2, 4)}
    x = X.double()
    for module in (model, single):
        kernels = [p for p in module.parameters() if p.ndim == 4]
        optimizer = torch.optim.SGD(kernels, lr=1e-3, momentum=0.9)
        for _ in range(20):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            if module is single:
                for i, factor in scaling.items():
                    single[i].weight.grad.mul_(factor)
            optimizer.step()
    start = fuse(reparameterize(net(nn.SiLU), "acb").double().eval())(x)
    assert (model(x) - start).abs().max() > 0.05
    torch.testing.assert_close(single(x), model(x), rtol=1e-10, atol=1e-10)


def test_what_cannot_be_folded_or_is_more_is_skipped_with_its_reason() -> None:
    class Own(layers.BatchNormAct2d):
        pass

    model = nn.Sequential(
        nn.Conv2d(3, 3, 3),
        layers.BatchNormAct2d(3, affine=False),
        nn.Conv2d(3, 3, 3),
        layers.BatchNormAct2d(3, track_running_stats=False),
        nn.Conv2d(3, 3, 3),
        Own(3),
        nn.Conv2d(3, 3, 3),
        layers.GroupNormAct(3, 1),
    )
    reasons = plan_conversion(model, "acb").skipped
    assert reasons["0"] == "its normalisation does not fit: it has no gamma and beta (affine=False)"
    assert "it keeps no running statistics" in reasons["2"]
    assert "it is a Own, which may do more than batch normalisation" in reasons["4"]
    assert reasons["6"] == "its output goes to group_norm, not to a batch normalisation"


def test_a_block_alone_does_not_take_an_activation() -> None:
    with pytest.raises(
        InputError,
        match=r"ACBlock can take over, got BatchNormAct2d(?s:.)*: it is a BatchNormAct2d, which may do more",
    ):
        ACBlock(nn.Conv2d(3, 3, 3), layers.BatchNormAct2d(3))


def test_taking_apart_and_putting_together_are_inverse() -> None:
    whole = randomise(layers.BatchNormAct2d(3, act_layer=nn.PReLU, drop_layer=Halved)).eval()
    norm, rest = normalisation(whole), remainder(whole)
    assert torch.equal(rest(norm(X)), whole(X))
    again = rejoin(norm, rest)
    assert torch.equal(again(X), whole(X))
    assert again.state_dict().keys() == whole.state_dict().keys()
    assert all(p is q for p, q in zip(again.parameters(), whole.parameters(), strict=True))
    assert is_remainder(rest)
    assert remainder(rest) is rest
    plain = nn.BatchNorm2d(3)
    assert normalisation(plain) is plain
    assert rejoin(plain, remainder(plain)) is plain
    for other in (whole, plain, nn.Sequential(nn.Identity(), nn.ReLU()), None):
        assert not is_remainder(other)


def test_copies_stay_in_one_piece() -> None:
    model = copy.deepcopy(randomise(reparameterize(net(), "repvgg")).eval())
    assert model[0].absorbed == (model[1],)
    close(to_plain(model)(X), model(X))
