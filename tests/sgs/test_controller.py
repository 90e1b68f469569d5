import copy
import gc
import io
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import backpass
from backpass.errors import InputError, NoEffectWarning, StateError
from backpass.sgs import SpatialGradientScaling, normalize, scaling_from_branches


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, (1, 5), groups=1),
        nn.Conv2d(3, 2, 1),
    )


def images(seed: int = 0) -> Tensor:
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def backward(model: nn.Module, seed: int = 0) -> None:
    model(images(seed)).square().mean().backward()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def with_scalings(sgs: SpatialGradientScaling) -> SpatialGradientScaling:
    """Set every scaling to its own uneven values."""
    generator = torch.Generator().manual_seed(3)
    for scaling in sgs.scalings.values():
        scaling.copy_(torch.rand(scaling.shape, generator=generator) + 0.5)
    return sgs


# Construction


def test_starts_at_ones_of_the_kernels_spatial_shape() -> None:
    sgs = SpatialGradientScaling(net())
    assert {name: g.tolist() for name, g in sgs.scalings.items()} == {
        "0.weight": [[1.0] * 3] * 3,
        "3.weight": [[1.0] * 5],
    }
    assert repr(sgs) == (
        "SpatialGradientScaling(2 kernels, k=5.0, measure='mutual_information', warmup=1, every=5, "
        "drop_near_equal=False, dilation='measured', apply='gradient')"
    )
    assert backpass.SpatialGradientScaling is SpatialGradientScaling


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "expected k to be a finite number > 0, got 0; choose another"),
        ({"k": -1}, "finite number > 0, got -1; choose another"),
        ({"k": math.nan}, "finite number > 0, got nan; choose another"),
        ({"k": math.inf}, "finite number > 0, got inf; choose another"),
        ({"k": "5"}, "finite number > 0, got '5'; choose another"),
        ({"measure": "cosine"}, "expected measure to be one of 'mutual_information', 'autocorrelation', got 'cosine'"),
        ({"apply": "weights"}, "expected apply to be one of 'gradient', 'update', got 'weights'"),
        ({"dilation": 2}, "expected dilation to be one of 'measured', 'ignored', got 2"),
        ({"warmup": -1}, "expected warmup to be an integer >= 0, got -1"),
        ({"every": 0}, "expected every to be an integer >= 1 and <= 2147483647, got 0"),
        ({"every": math.nan}, "expected every to be an integer .* got nan"),
        ({"scaling": [[1.0]]}, "expected a scaling of the shape of some kernel, .* got list"),
        (
            {"measure": "autocorrelation", "drop_near_equal": True},
            "'mutual_information' with drop_near_equal, got 'autocorr",
        ),
        ({"include": ["head.*"]}, r"the pattern 'head\.\*' of include matches none of the layers .*: 0, 3; "),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SpatialGradientScaling(net(), **options)


def test_include_restricts_what_is_scaled() -> None:
    model = net()
    sgs = with_scalings(SpatialGradientScaling(model, include=["3"]))
    assert list(sgs.scalings) == ["3.weight"]
    backward(model)
    plain = gradients(model)
    sgs.scale_gradients()
    changed = [name for name, grad in gradients(model).items() if not torch.equal(grad, plain[name])]
    assert changed == ["3.weight"]


@pytest.mark.parametrize(
    ("warmup", "every", "epochs"),
    [
        (1, 5, [1, 5, 10, 15, 20]),
        (0, 5, [0, 5, 10, 15, 20]),
        (1, 30, [1]),
        (1, 1, list(range(1, 21))),
        (7, 5, [7, 10, 15, 20]),
        (10, 4, [10, 12, 16, 20]),
    ],
)
def test_due(warmup: int, every: int, epochs: list[int]) -> None:
    sgs = SpatialGradientScaling(net(), warmup=warmup, every=every)
    assert not any(sgs.due(epoch) for epoch in range(warmup))
    assert sgs.due(warmup)
    sgs.update([images()])
    assert [epoch for epoch in range(21) if sgs.due(epoch)] == epochs


# Scaling gradients


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_are_multiplied_exactly_and_the_rest_is_left_alone(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    sgs = with_scalings(SpatialGradientScaling(model))
    model(images().to(dtype)).square().mean().backward()
    plain = gradients(model)
    held = {name: p.grad for name, p in model.named_parameters()}
    sgs.scale_gradients()
    for name, grad in gradients(model).items():
        expected = (plain[name] * sgs.scalings[name]).to(dtype) if name in sgs.scalings else plain[name]
        assert torch.equal(grad, expected), name
        assert grad.dtype == dtype
        assert dict(model.named_parameters())[name].grad is held[name]
    assert not torch.equal(gradients(model)["0.weight"], plain["0.weight"])


def test_ones_change_nothing() -> None:
    model = net()
    backward(model)
    plain = gradients(model)
    SpatialGradientScaling(model).scale_gradients()
    assert all(torch.equal(grad, plain[name]) for name, grad in gradients(model).items())


@pytest.mark.parametrize("convolution", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_every_rank_and_groups(convolution: type[nn.Conv2d]) -> None:
    model = convolution(4, 6, 3, groups=2)
    sgs = with_scalings(SpatialGradientScaling(model))
    axes = len(model.kernel_size)
    model(torch.ones(1, 4, *[5] * axes)).sum().backward()
    assert model.weight.grad is not None
    plain = model.weight.grad.clone()
    sgs.scale_gradients()
    assert torch.equal(model.weight.grad, plain * sgs.scalings["weight"])


def test_scalings_set_by_hand_take_effect_at_any_time() -> None:
    model = net()
    sgs = SpatialGradientScaling(model)
    for value in (2.0, 3.0):
        sgs.scalings["0.weight"] = torch.full((3, 3), value)
        model.zero_grad()
        backward(model)
        plain = gradients(model)["0.weight"]
        sgs.scale_gradients()
        assert torch.equal(gradients(model)["0.weight"], plain * value)


def test_parameters_without_a_gradient_are_skipped() -> None:
    model = net()
    sgs = with_scalings(SpatialGradientScaling(model))
    model[0].requires_grad_(False)
    backward(model)
    plain = gradients(model)
    sgs.scale_gradients()
    assert model[0].weight.grad is None
    assert torch.equal(gradients(model)["3.weight"], plain["3.weight"] * sgs.scalings["3.weight"])


def test_a_second_call_on_the_same_gradients_is_an_error() -> None:
    model = net()
    sgs = with_scalings(SpatialGradientScaling(model))
    backward(model)
    sgs.scale_gradients()
    once = gradients(model)
    with pytest.raises(
        StateError,
        match=r"got those that are scaled already; call scale_gradients\(\) once per step, after backward\(\)",
    ):
        sgs.scale_gradients()
    assert all(torch.equal(grad, once[name]) for name, grad in gradients(model).items())


def test_scaling_twice_is_refused_for_gradients_in_one_buffer() -> None:
    model = net()
    sgs = with_scalings(SpatialGradientScaling(model))
    backward(model)
    flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    parts = flat.split([parameter.numel() for parameter in model.parameters()])
    for parameter, part in zip(model.parameters(), parts, strict=True):
        parameter.grad = part.view_as(parameter)
    sgs.scale_gradients()
    once = flat.clone()
    with pytest.raises(StateError, match="scaled already"):
        sgs.scale_gradients()
    assert torch.equal(flat, once)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_it_is_allowed_again_after_zero_grad(set_to_none: bool) -> None:
    model = net()
    sgs = with_scalings(SpatialGradientScaling(model))
    backward(model)
    plain = gradients(model)
    for _ in range(2):
        model.zero_grad(set_to_none=set_to_none)
        backward(model)
        sgs.scale_gradients()
    expected = plain["0.weight"] * sgs.scalings["0.weight"]
    torch.testing.assert_close(gradients(model)["0.weight"], expected, rtol=1e-3, atol=1e-6)


def test_it_is_allowed_again_after_a_step_on_gradients_that_were_cleared_behind_torchs_back() -> None:
    model = net()
    sgs = with_scalings(SpatialGradientScaling(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(3):
        backward(model, seed)
        sgs.scale_gradients()
        optimizer.step()
        for parameter in model.parameters():
            parameter.grad.data.zero_()


def test_accumulated_gradients_are_scaled_like_those_of_one_batch() -> None:
    model = net().eval().double()
    sgs = with_scalings(SpatialGradientScaling(model))
    parts = [images(seed).double() for seed in (0, 1)]
    model(torch.cat(parts)).square().mean().backward()
    sgs.scale_gradients()
    whole = gradients(model)
    model.zero_grad()
    for part in parts:
        (model(part).square().mean() / 2).backward()
    sgs.scale_gradients()
    torch.testing.assert_close(gradients(model), whole, rtol=1e-12, atol=1e-14)


def test_no_gradient_is_kept_alive() -> None:
    model = net()
    sgs = SpatialGradientScaling(model)
    backward(model)
    sgs.scale_gradients()
    grad = weakref.ref(model[0].weight.grad)
    assert grad() is not None
    model.zero_grad()
    gc.collect()
    assert grad() is None


def test_scaling_before_or_after_the_loss_scale_is_taken_out_is_the_same() -> None:
    model = net()
    sgs = with_scalings(SpatialGradientScaling(model))
    results = []
    for unscale_first in (True, False):
        model.zero_grad()
        (model.eval()(images()).square().mean() * 1024).backward()
        steps: list[Callable[[], object]] = [
            lambda: [p.grad.div_(1024) for p in model.parameters() if p.grad is not None],
            sgs.scale_gradients,
        ]
        for step in steps if unscale_first else reversed(steps):
            step()
        results.append(gradients(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_parametrised_kernels() -> None:
    for wrap in (parametrizations.weight_norm, parametrizations.spectral_norm):
        model = nn.Sequential(wrap(nn.Conv2d(2, 2, 3, padding=1)), nn.Conv2d(2, 2, 1))
        sgs = with_scalings(SpatialGradientScaling(model))
        (name,) = sgs.scalings
        backward(model)
        plain = gradients(model)
        sgs.scale_gradients()
        assert torch.equal(gradients(model)[name], plain[name] * sgs.scalings[name])
        sgs.update([images()])
        assert not torch.equal(sgs.scalings[name], torch.ones(3, 3))


def test_a_shared_kernel_is_scaled_once() -> None:
    conv, twin = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
    twin.weight = conv.weight
    model = nn.Sequential(conv, twin)
    sgs = with_scalings(SpatialGradientScaling(model))
    backward(model)
    plain = gradients(model)["0.weight"]
    sgs.scale_gradients()
    assert torch.equal(gradients(model)["0.weight"], plain * sgs.scalings["0.weight"])


# The model stays plain


def test_the_model_is_never_altered() -> None:
    model, plain = net(), net()
    sgs = SpatialGradientScaling(model)
    sgs.update([images()])
    backward(model)
    sgs.scale_gradients()
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(plain.state_dict(), strict=True)


def test_a_deep_copy_of_the_model_is_independent() -> None:
    model = net()
    sgs = with_scalings(SpatialGradientScaling(model))
    twin = copy.deepcopy(model)
    backward(model)
    backward(twin)
    sgs.scale_gradients()
    assert not torch.equal(gradients(model)["0.weight"], gradients(twin)["0.weight"])
    sgs.update([images()])
    assert all(torch.equal(a, b) for a, b in zip(twin.buffers(), model.buffers(), strict=True))


def test_update_writes_in_place() -> None:
    sgs = SpatialGradientScaling(net())
    held = dict(sgs.scalings)
    sgs.update([images()])
    assert all(sgs.scalings[name] is scaling for name, scaling in held.items())
    assert not torch.equal(held["0.weight"], torch.ones(3, 3))


def test_update_is_all_or_nothing() -> None:
    model = net()
    sgs = with_scalings(SpatialGradientScaling(model))
    before = copy.deepcopy(sgs.scalings)
    with pytest.raises(InputError, match=r"failed on measuring batch 1 \(tensor of shape \(4, 2, 8, 2\)\)"):
        sgs.update([images(), images()[..., :2]])  # too narrow for the second kernel
    assert all(torch.equal(sgs.scalings[name], before[name]) for name in before)


# Attached to an optimizer


def trained(
    loop: Callable[[nn.Module, SpatialGradientScaling, torch.optim.Optimizer], None], **options: Any
) -> nn.Module:
    model = net()
    sgs = with_scalings(SpatialGradientScaling(model, apply=options.pop("apply", "gradient")))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
    loop(model, sgs, optimizer)
    return model


def by_hand(model: nn.Module, sgs: SpatialGradientScaling, optimizer: torch.optim.Optimizer) -> None:
    for seed in range(3):
        optimizer.zero_grad()
        backward(model, seed)
        sgs.scale_gradients()
        optimizer.step()


def attached(model: nn.Module, sgs: SpatialGradientScaling, optimizer: torch.optim.Optimizer) -> None:
    sgs.attach(optimizer)
    for seed in range(3):
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()


def in_context(model: nn.Module, sgs: SpatialGradientScaling, optimizer: torch.optim.Optimizer) -> None:
    for seed in range(3):
        optimizer.zero_grad()
        backward(model, seed)
        with sgs.scaled_update():
            optimizer.step()


def with_closure(model: nn.Module, sgs: SpatialGradientScaling, optimizer: torch.optim.Optimizer) -> None:
    sgs.attach(optimizer)
    for seed in range(3):

        def closure(seed: int = seed) -> float:
            optimizer.zero_grad()
            backward(model, seed)
            return 0.0

        optimizer.step(closure)


def unscaled(model: nn.Module, sgs: SpatialGradientScaling, optimizer: torch.optim.Optimizer) -> None:
    for seed in range(3):
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()


def assert_equal_weights(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, msg=lambda text, name=name: f"{name}: {text}", **tolerance)  # type: ignore[misc]


def test_attach_equals_the_call_in_the_loop() -> None:
    options = {"momentum": 0.9, "weight_decay": 0.01}
    assert_equal_weights(trained(attached, **options), trained(by_hand, **options), rtol=0, atol=0)
    with pytest.raises(AssertionError, match=r"0\.weight"):
        assert_equal_weights(trained(attached, **options), trained(unscaled, **options), rtol=0, atol=1e-4)


@pytest.mark.parametrize("end", ["handle", "remove", "context"])
def test_removal_restores_plain_training(end: str) -> None:
    def loop(model: nn.Module, sgs: SpatialGradientScaling, optimizer: torch.optim.Optimizer) -> None:
        handle = sgs.attach(optimizer)
        if end == "handle":
            handle.remove()
        elif end == "remove":
            sgs.remove()
        else:
            with handle:
                pass
        unscaled(model, sgs, optimizer)

    for apply in ("gradient", "update"):
        assert_equal_weights(trained(loop, apply=apply), trained(unscaled), rtol=0, atol=0)


@pytest.mark.parametrize("as_keyword", [True, False])
def test_attach_refuses_a_closure(as_keyword: bool) -> None:
    model = net()
    sgs = SpatialGradientScaling(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sgs.attach(optimizer)
    backward(model)
    before = copy.deepcopy(model.state_dict())
    message = (
        r"step\(closure\) computes gradients after this hook; .* call scale_gradients\(\) at the end of the closure"
    )
    with pytest.raises(StateError, match=message):
        optimizer.step(closure=lambda: 0.0) if as_keyword else optimizer.step(lambda: 0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    optimizer.step(None)


# Scaling the update


@pytest.mark.parametrize("loop", [attached, in_context, with_closure])
def test_scaling_the_update_of_plain_sgd_equals_scaling_the_gradient(loop: Any) -> None:
    assert_equal_weights(trained(loop, apply="update"), trained(by_hand), rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError, match=r"0\.weight"):
        assert_equal_weights(trained(loop, apply="update"), trained(unscaled), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_update_is_scaled_by_its_formula(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    sgs = with_scalings(SpatialGradientScaling(model, apply="update"))
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    twin = copy.deepcopy(model)
    model(images().to(dtype)).square().mean().backward()
    twin(images().to(dtype)).square().mean().backward()
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    with sgs.scaled_update():
        optimizer.step()
    torch.optim.Adagrad(twin.parameters(), lr=0.1).step()
    for name, stepped in twin.named_parameters():
        g = sgs.scalings[name].double() if name in sgs.scalings else 1.0
        expected = old[name].double() + g * (stepped.detach().double() - old[name].double())
        actual = dict(model.named_parameters())[name].detach()
        torch.testing.assert_close(
            actual, expected.to(dtype), rtol=1e-14 if dtype == torch.float64 else 1e-2, atol=1e-14
        )


def test_an_error_inside_scaled_update_leaves_the_weights_as_they_are() -> None:
    model = net()
    sgs = with_scalings(SpatialGradientScaling(model, apply="update"))

    def fail() -> None:
        with sgs.scaled_update(), torch.no_grad():
            model[0].weight.fill_(3)
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert torch.equal(model[0].weight, torch.full_like(model[0].weight, 3))


def test_the_two_ways_of_applying_do_not_mix() -> None:
    model = net()
    with pytest.raises(
        StateError, match=r"expected apply='gradient', got apply='update'; use `with sgs\.scaled_update\(\):`"
    ):
        SpatialGradientScaling(model, apply="update").scale_gradients()
    with (
        pytest.raises(StateError, match=r"expected apply='update', got apply='gradient'; use scale_gradients\(\)"),
        SpatialGradientScaling(model).scaled_update(),
    ):
        pass


@pytest.mark.parametrize("given", [None, torch.full((3, 3), 2.0)])
def test_a_model_on_the_meta_device_gets_its_scalings_before_its_weights(given: Tensor | None) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
        sgs = SpatialGradientScaling(model, scaling=given)
    model(torch.ones(1, 2, 8, 8, device="meta")).sum().backward()
    sgs.scale_gradients()  # of a dry run
    assert torch.equal(sgs.scalings["0.weight"], torch.ones(3, 3) if given is None else given)
    model.zero_grad()
    model.to_empty(device="cpu")
    model[0].reset_parameters()
    if given is None:
        sgs.update([images()])
        plain = SpatialGradientScaling(model)
        plain.update([images()])
        assert torch.equal(sgs.scalings["0.weight"], plain.scalings["0.weight"])
    backward(model)
    gradient = model[0].weight.grad.clone()
    sgs.scale_gradients()
    assert torch.equal(model[0].weight.grad, gradient * sgs.scalings["0.weight"])


# State


def test_state_survives_a_file_that_loads_weights_only() -> None:
    sgs = SpatialGradientScaling(net(), k=3.0)
    sgs.update([images()])
    file = io.BytesIO()
    torch.save(sgs.state_dict(), file)
    file.seek(0)
    fresh = SpatialGradientScaling(net(), k=3.0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert not torch.equal(fresh.scalings["0.weight"], torch.ones(3, 3))
    assert all(torch.equal(fresh.scalings[name], scaling) for name, scaling in sgs.scalings.items())


def test_state_with_an_epoch_of_numpy_loads_weights_only() -> None:
    sgs = SpatialGradientScaling(nn.Conv2d(1, 2, 3), k=np.int64(4), warmup=0)
    sgs.start_epoch(np.arange(1)[0], [torch.randn(8, 1, 6, 6)])
    file = io.BytesIO()
    torch.save(sgs.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert (state["epoch"], state["k"]) == (0, 4.0)


def test_the_state_is_a_copy() -> None:
    sgs = SpatialGradientScaling(net())
    state = sgs.state_dict()
    sgs.update([images()])
    assert torch.equal(state["scalings"]["0.weight"], torch.ones(3, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(k=4.0), "with k=5.0, got one with 4.0"),
        (
            lambda s: s.update(measure="autocorrelation"),
            "with measure='mutual_information', got one with 'auto",
        ),
        (lambda s: s.update(dilation="ignored"), "with dilation='measured', got one with 'ignored'"),
        (lambda s: s.update(drop_near_equal=True), "with drop_near_equal=False, got one with True"),
        (lambda s: s.update(apply="update"), "with apply='gradient', got one with 'update'"),
        (lambda s: s.update(scaling="fixed"), "with scaling='measured', got one with 'fixed'"),
        (lambda s: s["scalings"].pop("0.weight"), r"missing \['0.weight'\], unknown \[\]"),
        (lambda s: s["scalings"].update(other=torch.ones(3, 3)), r"missing \[\], unknown \['other'\]"),
        (
            lambda s: s["scalings"].update({"3.weight": torch.ones(3, 3)}),
            r"scaling of 3\.weight to have shape \(1, 5\), got \(3, 3\)",
        ),
        (
            lambda s: s["scalings"].update({"3.weight": [1.0] * 5}),
            r"scaling of 3\.weight to have shape \(1, 5\), got list",
        ),
        *(
            (
                lambda s, bad=bad: s["scalings"]["3.weight"][0].copy_(torch.tensor([1, 1, bad, 1, 1])),
                rf"of 3\.weight to be finite and above 0, got \[\[1\.0, 1\.0, {bad}, 1\.0, 1\.0\]\]; measure it",
            )
            for bad in (math.nan, math.inf, 0.0, -1.0)
        ),
        (
            lambda s: s.pop("scalings"),
            r"expected a state_dict\(\) of SpatialGradientScaling, got one without scalings;",
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: Callable[[dict[str, Any]], object], message: str) -> None:
    sgs = with_scalings(SpatialGradientScaling(net()))
    before = copy.deepcopy(sgs.scalings)
    state = with_scalings(SpatialGradientScaling(net())).state_dict()
    state["scalings"]["0.weight"] *= 2  # comes first, and must not be loaded either
    change(state)
    with pytest.raises(InputError, match=message):
        sgs.load_state_dict(state)
    assert all(torch.equal(sgs.scalings[name], before[name]) for name in before)


def test_a_measured_state_does_not_replace_a_fixed_scaling() -> None:
    measured, fixed = (SpatialGradientScaling(net(), scaling=given) for given in (None, torch.full((3, 3), 2.0)))
    fixed.load_state_dict(fixed.state_dict())
    state = measured.state_dict()
    state["scalings"] = {name: state["scalings"][name] for name in fixed.scalings}
    with pytest.raises(InputError, match="with scaling='fixed', got one with 'measured'; construct the controller"):
        fixed.load_state_dict(state)


ACB = [[0.6, 1.2, 0.6], [1.2, 1.8, 1.2], [0.6, 1.2, 0.6]]


def mixed_kernels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, (1, 3)), nn.Conv2d(2, 1, 3))


def test_a_fixed_scaling_reaches_every_kernel_of_its_shape():
    model = mixed_kernels()
    scaling = normalize(scaling_from_branches(["3x3", "1x3", "3x1"]))
    torch.testing.assert_close(scaling, torch.tensor(ACB))
    sgs = SpatialGradientScaling(model, scaling=scaling)
    assert sorted(sgs.scalings) == ["0.weight", "2.weight"]
    model(torch.randn(2, 1, 7, 9)).sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    sgs.scale_gradients()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, plain[name] * (scaling if name in sgs.scalings else 1.0))
    assert not any(sgs.due(epoch) for epoch in range(30))
    with pytest.raises(StateError, match="got a fixed one; leave out scaling"):
        sgs.update([torch.randn(2, 1, 7, 9)])


def test_fixed_scalings_by_name():
    sgs = SpatialGradientScaling(mixed_kernels(), scaling={"1.weight": torch.tensor([[0.5, 2.0, 0.5]])})
    assert list(sgs.scalings) == ["1.weight"]
    assert sgs.scalings["1.weight"].tolist() == [[0.5, 2.0, 0.5]]


@pytest.mark.parametrize(
    ("scaling", "text"),
    [
        (torch.ones(5, 5), r"of the shape of some kernel, or one for some of \['0.weight'.*got shape \(5, 5\)"),
        ({"9.weight": torch.ones(3, 3)}, r"got \['9.weight'\]"),
        ({"0.weight": torch.ones(3)}, r"scaling of 0.weight to have shape \(3, 3\), got \(3,\)"),
        (torch.zeros(3, 3), r"to be finite and above 0, got \[\[0.0"),
    ],
)
def test_fixed_scalings_that_fit_nothing(scaling, text):
    with pytest.raises(InputError, match=text):
        SpatialGradientScaling(mixed_kernels(), scaling=scaling)


def test_a_scaling_that_was_replaced_or_written_over_counts_from_the_next_step() -> None:
    conv = nn.Conv2d(2, 3, 3)
    sgs = SpatialGradientScaling(conv)

    def scaled() -> Tensor:
        conv.weight.grad = torch.ones_like(conv.weight)
        sgs.scale_gradients()
        return conv.weight.grad[0, 0]

    assert torch.equal(scaled(), torch.ones(3, 3))
    sgs.scalings["weight"][1, 1] = 3.0
    assert torch.equal(scaled(), sgs.scalings["weight"])
    sgs.scalings["weight"] = torch.full((3, 3), 2.0)
    assert torch.equal(scaled(), torch.full((3, 3), 2.0))
    assert torch.equal(copy.deepcopy(sgs).scalings["weight"], torch.full((3, 3), 2.0))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_scripted_model_is_refused_with_its_reason() -> None:
    with pytest.raises(InputError, match=r"whose convolutions are compiled .* before torch\.jit\.script"):
        SpatialGradientScaling(torch.jit.script(net()))


def test_a_training_that_ends_before_the_first_measurement_is_warned_of() -> None:
    with pytest.warns(NoEffectWarning, match="2 epochs of training end before scalings are measured, at epoch 2"):
        SpatialGradientScaling(net(), warmup=2).check_epochs(2)
    measured = SpatialGradientScaling(net(), warmup=2)
    measured.update([torch.randn(4, 2, 8, 8)])
    measured.check_epochs(2)
    SpatialGradientScaling(net(), warmup=2).check_epochs(3)
    SpatialGradientScaling(net(), warmup=0).check_epochs(1)
    SpatialGradientScaling(net(), scaling=torch.ones(3, 3)).check_epochs(1)
