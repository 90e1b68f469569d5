"""What is saved, copied or averaged during training is the plain model."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from battery.loop import Loop, net
from battery.rows import Method, Row

LOOP = Loop(dtype=torch.float32)


def in_training(row: Row) -> tuple[nn.Module, Method, Optimizer]:
    """Return a model after one step with the row's method, which is still attached, and gradients of the next."""
    model = LOOP.new_model()
    method = row.ours(model)
    method.measure([LOOP.batch(100)[0]])
    optimizer = LOOP.optimizer(model.parameters())
    method.attach(optimizer)
    x, y = LOOP.batch(0)
    row.loss.ours(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    row.loss.ours(model(x), y).backward()
    return model, method, optimizer


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def step(model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor], method: Method) -> dict[str, Tensor]:
    """Return the model's state after one step on the second batch."""
    x, y = LOOP.batch(1)
    method.remove()  # from the optimizer before
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.zero_grad()
    criterion(model(x), y).backward()
    method.scale()
    with method.around_step(optimizer):
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def assert_plain(row: Row, copied: nn.Module, model: nn.Module, method: Method) -> None:
    """Check that a copy trains as a plain model with its weights does, and that the model itself does not."""
    plain = net()
    plain.load_state_dict(copied.state_dict(), strict=True)
    plain.train(copied.training)
    expected = step(plain, row.loss.plain, Method())
    assert equal(step(copied, row.loss.plain, Method()), expected)
    if row.alters:
        assert not equal(step(model, row.loss.ours, method), expected)


def test_model_state_is_that_of_the_plain_model(row: Row) -> None:
    model, _, _ = in_training(row)
    plain = net()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert not equal(model.state_dict(), plain.state_dict())
    plain.load_state_dict(through_a_file(model.state_dict()), strict=True)
    x, _ = LOOP.batch(0)
    assert torch.equal(plain.eval()(x), model.eval()(x))
    fresh = net()
    model.load_state_dict(through_a_file(fresh.state_dict()), strict=True)
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_method_state_resumes_without_measuring(row: Row) -> None:
    if not row.measures:
        pytest.skip("the method keeps no state")
    model, method, _ = in_training(row)
    resumed, unmeasured = copy.deepcopy(model), copy.deepcopy(model)
    resumed_method = row.ours(resumed)
    resumed_method.load_state_dict(through_a_file(method.state_dict()))
    expected = step(model, row.loss.ours, method)
    assert equal(step(resumed, row.loss.ours, resumed_method), expected)
    assert not equal(step(unmeasured, row.loss.ours, row.ours(unmeasured)), expected)


def test_deep_copy_of_the_model_is_plain(row: Row) -> None:
    model, method, _ = in_training(row)
    assert_plain(row, copy.deepcopy(model), model, method)


def test_pickled_model_is_plain(row: Row) -> None:
    model, method, _ = in_training(row)
    assert_plain(row, pickle.loads(pickle.dumps(model)), model, method)


def test_averaged_copy_is_plain(row: Row) -> None:
    model, method, optimizer = in_training(row)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(model)
    optimizer.step()
    average.update_parameters(model)
    assert not equal(average.module.state_dict(), model.state_dict())
    assert_plain(row, average.module, model, method)


def test_optimizer_is_saved_and_copied_while_attached(row: Row) -> None:
    model, _, optimizer = in_training(row)
    twin = net()
    fresh = LOOP.optimizer(twin.parameters())
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    momentum = [state["momentum_buffer"] for state in fresh.state_dict()["state"].values()]
    expected = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    assert all(map(torch.equal, momentum, expected))
    assert any(buffer.any() for buffer in momentum)
    copy.deepcopy(optimizer).step()
    pickle.loads(pickle.dumps(optimizer)).step()
