import copy
import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from backpass.errors import BackpassWarning, InputError, StateError
from backpass.reparam import DyRep, DyRepBlock, fuse
from backpass.reparam.dyrep.scores import METRICS
from reference.reparam_cases import Residual, images

EVERY = 2


def batch(step: int) -> tuple[Tensor, Tensor]:
    return images(6, 3, 9, 9, seed=step), torch.arange(6) % 5


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    flat = [p for p in model.parameters() if p.ndim <= 1]
    kernels = [p for p in model.parameters() if p.ndim > 1]
    return torch.optim.SGD([{"params": kernels}, {"params": flat, "weight_decay": 0.0}], lr=0.02, momentum=0.9,
                           weight_decay=1e-3)  # fmt: skip


def make(seed: int = 0, **options) -> tuple[nn.Module, torch.optim.Optimizer, DyRep]:
    torch.manual_seed(seed)
    model = Residual()
    optimizer = sgd(model)
    return model, optimizer, DyRep(model, optimizer, every=EVERY, **options)


def backward(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    x, target = batch(step)
    nn.functional.cross_entropy(model.train()(x), target).backward()


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, dyrep: DyRep, epochs: Iterator[int] | range
) -> list[object]:
    events = []
    for epoch in epochs:
        for step in (2 * epoch, 2 * epoch + 1):
            backward(model, optimizer, step)
            dyrep.record()
            optimizer.step()
        if dyrep.due(epoch):
            events.append(dyrep.adjust([batch(1000 + epoch), batch(2000 + epoch)]))
    return events


def test_adjustments_are_due_at_the_end_of_every_so_many_epochs() -> None:
    model = Residual()
    dyrep = DyRep(model, sgd(model), every=15, until=500)
    due = [epoch for epoch in range(600) if dyrep.due(epoch)]
    assert due[:2] == [14, 29]
    assert len(due) == 33
    for every, until, epochs, events in ((15, 500, 200, 13), (5, 100, 120, 20), (5, 70, 90, 14)):
        dyrep = DyRep(model, sgd(model), every=every, until=until)
        assert sum(dyrep.due(epoch) for epoch in range(epochs)) == events


@pytest.mark.parametrize("metric", METRICS)
def test_the_convolution_with_the_largest_mean_score_grows(metric: str) -> None:
    model, optimizer, dyrep = make(metric=metric)
    sums: dict[str, float] = {}
    for step in range(3):
        backward(model, optimizer, step)
        dyrep.record()
        for name in ("conv1", "conv2"):
            w, g = (
                t.detach().double() for t in (model.get_submodule(name).weight, model.get_submodule(name).weight.grad)
            )
            value = {"synflow": (w * g).sum(), "snip": (w * g).abs().sum(), "grad_norm": g.norm(), "random": 0.0}[
                metric
            ]
            sums[name] = sums.get(name, 0.0) + float(value)
        optimizer.step()
    event = dyrep.adjust([batch(9)])
    assert event.grown == max(event.scores, key=event.scores.get) == next(iter(event.scores))
    assert isinstance(model.get_submodule(event.grown), DyRepBlock)
    if metric == "random":
        assert all(0.0 < score < 1.0 for score in event.scores.values())
    else:
        scale = max(abs(total) for total in sums.values())
        for name, total in sums.items():
            assert event.scores[name] == pytest.approx(total / 3, rel=1e-3, abs=1e-3 * scale), name


def test_an_adjustment_keeps_the_function_and_the_state_of_the_other_parameters() -> None:
    model, optimizer, dyrep = make(metric="snip")
    for step in range(3):
        backward(model, optimizer, step)
        dyrep.record()
        optimizer.step()
    x = images(4, 3, 9, 9)
    expected = model.eval()(x)
    before = {name: (p, optimizer.state[p]["momentum_buffer"].clone()) for name, p in model.named_parameters()}
    event = dyrep.adjust([batch(9)])
    out = model.eval()(x)
    assert ((out - expected).abs().max() / expected.abs().max()).item() < 1e-5
    survivors = {id(p): name for name, (p, _) in before.items() if name != f"{event.grown}.weight"}
    for parameter in model.parameters():
        if id(parameter) in survivors:
            momentum = optimizer.state[parameter]["momentum_buffer"]
            assert torch.equal(momentum, before[survivors.pop(id(parameter))][1])
        else:
            assert parameter not in optimizer.state
    assert survivors == {}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert all(p.ndim <= 1 for p in optimizer.param_groups[1]["params"])
    assert all(p.ndim > 1 for p in optimizer.param_groups[0]["params"])


def test_weak_branches_go() -> None:
    model, optimizer, dyrep = make(metric="snip")
    (event,) = train(model, optimizer, dyrep, range(EVERY))
    assert event.cut == {}
    block = model.get_submodule(event.grown)
    with torch.no_grad():
        for name, branch in block.items():
            branch.norm.weight.fill_({"1xk": 0.5, "kxk": 1.0}.get(name, 0.01))
    backward(model, optimizer, 5)
    dyrep.record()
    x = images(4, 3, 9, 9)
    expected = model.eval()(x)
    others = [name for name in block.branches if name not in ("1xk", "kxk")]
    assert dyrep.adjust([batch(9)]).cut == {event.grown: others}
    assert set(block.branches) == {"1xk", "kxk"}
    assert ((model.eval()(x) - expected).abs().max() / expected.abs().max()).item() < 1e-5
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert set(optimizer.state) <= set(held)


@pytest.mark.parametrize("metric", METRICS)
def test_a_resumed_run_equals_one_that_never_stopped(metric: str) -> None:
    straight, straight_optimizer, straight_dyrep = make(metric=metric)
    events = train(straight, straight_optimizer, straight_dyrep, range(7))
    assert len(events) == 3

    model, optimizer, dyrep = make(metric=metric)
    train(model, optimizer, dyrep, range(5))  # after two events and one epoch of records
    file = io.BytesIO()
    state = {"dyrep": dyrep.state_dict(), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    model, optimizer, dyrep = make(seed=7, metric=metric)
    dyrep.load_state_dict(state["dyrep"])
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    resumed = train(model, optimizer, dyrep, range(5, 7))
    assert resumed == events[2:]
    expected = straight.state_dict()
    assert list(expected) == list(model.state_dict())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    fused = fuse(model.eval())
    torch.testing.assert_close(fused(images(2, 3, 9, 9)), model(images(2, 3, 9, 9)), rtol=1e-4, atol=1e-4)


def test_steps_with_overflow_do_not_count() -> None:
    model, optimizer, dyrep = make(metric="snip")
    backward(model, optimizer, 0)
    dyrep.record()
    clean = copy.deepcopy(dyrep._mean_scores())
    model.conv1.weight.grad[0] = float("inf")
    dyrep.record()
    assert dyrep._mean_scores()["conv1"] == clean["conv1"]
    model.conv2.weight.grad = None
    dyrep.record()
    assert dyrep._mean_scores()["conv2"] == pytest.approx(clean["conv2"], rel=1e-6)


def test_growing_before_a_normalisation_in_another_mode_warns() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 81, 5))
    optimizer = sgd(model)
    dyrep = DyRep(model, optimizer, metric="snip")
    backward(model, optimizer, 0)
    dyrep.record()
    model[1].eval()
    with pytest.warns(BackpassWarning, match=r"grows 0, which no batch normalisation follows directly in its mode"):
        dyrep.adjust([batch(9)])


def test_growing_without_a_following_normalisation_warns() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 81, 5))
    optimizer = sgd(model)
    dyrep = DyRep(model, optimizer, metric="snip")
    backward(model, optimizer, 0)
    dyrep.record()
    with pytest.warns(BackpassWarning, match=r"grows 0, which no batch normalisation follows directly in its mode"):
        dyrep.adjust([batch(9)])
    backward(model, optimizer, 1)
    dyrep.record()
    assert dyrep.adjust([batch(9)]).grown.startswith("0.branches.")


def test_when_nothing_can_grow_any_more_pruning_goes_on() -> None:
    model, optimizer, dyrep = make(metric="snip")
    for step in range(6):
        backward(model, optimizer, step)
        dyrep.record()
        dyrep.adjust([batch(9)])
    backward(model, optimizer, 6)
    dyrep.record()
    event = dyrep.adjust([])
    assert event.grown is None
    assert event.scores == {}


def test_a_network_of_kernels_alone_grows() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 5, 7, bias=False), nn.Flatten())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    dyrep = DyRep(model, optimizer, metric="snip")
    backward(model, optimizer, 0)
    dyrep.record()
    with pytest.warns(BackpassWarning, match="no batch normalisation follows"):
        assert dyrep.adjust([batch(9)]).grown is not None
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}


def test_a_failed_adjustment_takes_the_block_back() -> None:
    model, optimizer, dyrep = make()
    backward(model, optimizer, 0)
    dyrep.record()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="at least one batch"):
        dyrep.adjust([])
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert dyrep.adjust([batch(9)]).grown is not None


def test_an_error_of_group_of_restores_convolution_and_optimizer() -> None:
    def failing(name: str, parameter: nn.Parameter) -> int:
        raise KeyError(name)

    model, optimizer, dyrep = make(group_of=failing)
    backward(model, optimizer, 0)
    optimizer.step()
    dyrep.record()
    state, momenta = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(KeyError, match="branches"):
        dyrep.adjust([batch(9)])
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert str(optimizer.state_dict()) == str(momenta)


def test_misuse_is_refused_with_the_next_step() -> None:
    model, optimizer, dyrep = make()
    with pytest.raises(StateError, match=r"got none; call record\(\) after each backward"):
        dyrep.adjust([batch(0)])
    with pytest.raises(InputError, match=r"one of synflow, snip, grad_norm, random, got 'taylor'"):
        DyRep(model, optimizer, metric="taylor")
    with pytest.raises(InputError, match=r"every=0, recalibration_batches=20, until=500"):
        DyRep(model, optimizer, every=0)
    with pytest.raises(InputError, match="got it wrapped in OptimizedModule; create DyRep first, wrap afterwards"):
        DyRep(torch.compile(model), optimizer)
    with pytest.raises(InputError, match="got it wrapped in DataParallel; create DyRep first"):
        DyRep(nn.DataParallel(model), optimizer)
    linear = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"expected an nn.Conv2d that can grow, .*, got Linear without one"):
        DyRep(linear, torch.optim.SGD(linear.parameters(), lr=0.1))
    backward(model, optimizer, 0)
    dyrep.record()
    dyrep.adjust([batch(0)])
    with pytest.raises(StateError, match=r"got one with blocks; load DyRep's state into the plain model"):
        dyrep.load_state_dict(dyrep.state_dict())
    with pytest.raises(InputError, match=r"recorded with metric='snip', got one with 'synflow'"):
        make(metric="snip")[2].load_state_dict(dyrep.state_dict())


@pytest.mark.parametrize(
    ("tie", "kept"),
    [
        (lambda m: m.conv1.register_forward_hook(lambda *_: None), "conv1"),
        (lambda m: setattr(m.shortcut[0], "weight", m.conv2.weight), "conv2"),
        (lambda m: setattr(m, "layers", [m.conv2]), "conv2"),
    ],
)
def test_convolutions_that_something_else_is_tied_to_do_not_grow(tie, kept: str) -> None:
    torch.manual_seed(0)
    model = Residual()
    tie(model)
    assert set(DyRep(model, sgd(model))._convs) == {"conv1", "conv2"} - {kept}


def test_convolutions_whose_weight_the_forward_pass_reads_do_not_grow() -> None:
    class Reading(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.conv1.weight.square().mean()

    model = Reading()
    optimizer = sgd(model)
    dyrep = DyRep(model, optimizer, metric="snip")
    for step in range(2):
        backward(model, optimizer, step)
        dyrep.record()
        assert dyrep.adjust([batch(9)]).grown.startswith("conv2")
    assert type(model.conv1) is nn.Conv2d
