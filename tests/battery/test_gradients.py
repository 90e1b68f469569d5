"""What a method may alter, the gradient, and what it must leave alone."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as global_hooks
from torch.optim import Optimizer

from battery import definitions
from battery.loop import DEVICES, Loop, Outcome, batch, examine, net
from battery.rows import ALPHA, CLIP_FACTOR, EPS, Criterion, Method, Refusing, Row

PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
LOOP = Loop(optimizer=partial(torch.optim.SGD, lr=0.5))


def at_work(row: Row, model: nn.Module) -> tuple[Method, Optimizer]:
    """Return the row's method, measured and attached to an optimizer of the model."""
    method = row.ours(model)
    method.measure([LOOP.batch(100)[0]])
    optimizer = LOOP.optimizer(model.parameters())
    method.attach(optimizer)
    return method, optimizer


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# The harness itself


def test_the_setting_clips_some_units_and_not_others() -> None:
    model = net()
    F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    clipped = definitions.clip_units(model, CLIP_FACTOR, EPS)
    assert 0 < sum(clipped) < len(clipped)


def test_the_comparison_sees_a_change_of_one_weight() -> None:
    loop = Loop(steps=1)
    outcome = loop.run(F.cross_entropy, lambda model: Method())
    changed = copy.deepcopy(outcome.model)
    changed.get_parameter("0.weight").data[0, 0, 0, 0] += 1e-6
    loop.assert_same(outcome, outcome)
    loop.assert_differs(outcome, replace(outcome, state=changed.state_dict()))
    loop.assert_differs(outcome, Outcome(outcome.model, outcome.state, {}))


def test_the_defined_power_gradient_is_that_of_a_temperature() -> None:
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    y = torch.arange(4)
    (defined,) = torch.autograd.grad(definitions.power_grad(F.cross_entropy, ALPHA)(z, y), z)
    (expected,) = torch.autograd.grad(F.cross_entropy(ALPHA * z, y) / ALPHA, z)
    torch.testing.assert_close(defined, expected)


# The gradient


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_is_the_defined_one(row: Row, device: str) -> None:
    examine(row, Loop(device=device, steps=3))


def test_forward_output_and_loss_are_untouched(row: Row) -> None:
    x, y = LOOP.batch(0)
    for training in (True, False):
        plain, model = LOOP.new_model().train(training), LOOP.new_model().train(training)
        expected = plain(x)
        _, optimizer = at_work(row, model)
        output = model(x)
        assert torch.equal(output, expected)
        loss = row.loss.ours(output, y)
        torch.testing.assert_close(loss, row.loss.plain(expected, y), rtol=1e-14, atol=0)
        loss.backward()
        optimizer.step()
        assert not torch.equal(model(x), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "nhwc"])
def test_dtype_device_and_layout_of_gradients_are_kept(
    row: Row, device: str, memory_format: torch.memory_format
) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        loop = Loop(device=device, dtype=dtype, memory_format=memory_format)
        twins = [loop.new_model(), loop.new_model()]
        x, y = loop.batch(0)
        method = row.ours(twins[0])
        method.measure([x])
        for model, criterion in zip(twins, (row.loss.ours, row.loss.plain), strict=True):
            criterion(model(x), y).backward()
        held = {name: p.grad for name, p in twins[0].named_parameters()}
        method.scale()
        for (name, parameter), plain in zip(twins[0].named_parameters(), twins[1].parameters(), strict=True):
            gradient = parameter.grad
            assert gradient is held[name]
            assert gradient is not None
            assert plain.grad is not None
            for attribute in ("dtype", "device", "shape", "layout"):
                assert getattr(gradient, attribute) == getattr(plain.grad, attribute), (name, attribute)
            assert gradient.stride() == plain.grad.stride(), name


def test_removal_restores_the_plain_gradient(row: Row) -> None:
    def stepped(model: nn.Module, criterion: Criterion, optimizer: Optimizer) -> dict[str, Tensor]:
        model.load_state_dict(LOOP.new_model().state_dict())
        optimizer.zero_grad()
        x, y = LOOP.batch(0)
        criterion(model(x), y).backward()
        optimizer.step()
        return copy.deepcopy(model.state_dict())

    plain, model = LOOP.new_model(), LOOP.new_model()
    expected = stepped(plain, row.loss.plain, LOOP.optimizer(plain.parameters()))
    method, optimizer = at_work(row, model)
    altered = stepped(model, row.loss.ours, optimizer)
    method.remove()
    torch.testing.assert_close(stepped(model, row.loss.plain, optimizer), expected, rtol=0, atol=0)
    if row.alters:
        with pytest.raises(AssertionError):
            torch.testing.assert_close(altered, expected)


def test_twice_equals_once_or_is_refused(row: Row, refusing: Refusing) -> None:
    model = LOOP.new_model()
    x, y = LOOP.batch(0)
    output = model(x)
    row.loss.ours(output, y).backward(retain_graph=True)
    once = gradients(model)
    model.zero_grad()
    ((row.loss.ours(output, y) + row.loss.ours(output, y)) / 2).backward()
    torch.testing.assert_close(gradients(model), once)
    for transform in row.transforms:
        method = transform.ours(model)
        method.measure([x])
        method.scale()
        once, start = gradients(model), copy.deepcopy(model.state_dict())
        with refusing(replace(row, transforms=(transform,)), "applied twice"):
            method.scale()
            optimizer = LOOP.optimizer(model.parameters())
            with method.around_step(optimizer), method.around_step(optimizer):
                optimizer.step()
        torch.testing.assert_close(gradients(model), once)
        if "applied twice" in transform.refuses:
            torch.testing.assert_close(model.state_dict(), start, rtol=0, atol=0)


def test_attached_twice_equals_once_or_is_refused(row: Row, refusing: Refusing) -> None:
    models = [LOOP.new_model(), LOOP.new_model()]
    (_, once), (method, twice) = (at_work(row, model) for model in models)
    with refusing(row, "attached twice"):
        method.attach(twice)
    x, y = LOOP.batch(0)
    for model, optimizer in zip(models, (once, twice), strict=True):
        row.loss.ours(model(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict())


def hooks(model: nn.Module) -> int:
    """Count the hooks on the modules, on the parameters, and on all modules there are."""
    on_modules = [vars(module) for module in (*model.modules(), global_hooks)]
    named = [held for attributes in on_modules for name, held in attributes.items() if "hooks" in name]
    on_parameters = [getattr(p, name) for p in model.parameters() for name in PARAMETER_HOOKS]
    return sum(len(held) for held in (*named, *on_parameters) if isinstance(held, dict))


def test_no_hook_stays_on_the_model(row: Row) -> None:
    model = LOOP.new_model()
    before = hooks(model)
    _, optimizer = at_work(row, model)
    assert hooks(model) == before
    x, y = LOOP.batch(0)
    row.loss.ours(model(x), y).backward()
    optimizer.step()
    assert hooks(model) == before


def test_hooks_of_every_kind_are_counted() -> None:
    model = LOOP.new_model()
    before = hooks(model)
    handles = [
        model[0].register_forward_hook(lambda *_: None),
        model[0].register_full_backward_hook(lambda *_: None),
        model[0].weight.register_hook(lambda _: None),
        model[0].weight.register_post_accumulate_grad_hook(lambda _: None),
        global_hooks.register_module_forward_pre_hook(lambda *_: None),
    ]
    found = hooks(model) - before
    for handle in handles:
        handle.remove()
    assert found == len(handles)
