from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from backpass.errors import InputError
from backpass.training import traces as traces_module
from backpass.training.recipe import PgtSettings, Run, Runtime, SgsSettings
from backpass.training.trainer import Trainer

CPU = Runtime(device="cpu")
NUMBERS = {"train_logit_norm", "train_logit_spread", "train_gradient_norm", "train_gradient_norm_std"}


class KilledError(Exception):
    pass


def kill(record):
    if record["epoch"] == 1:
        raise KilledError


def one(value):
    return value


def test_what_is_recorded_and_when(recipe, images):
    settings = replace(recipe, epochs=4, sgs=SgsSettings(warmup=1, every=2, batches=1))
    trainer = Trainer(Run(settings, "sgs+pgt"), images, runtime=CPU)
    start = trainer.model.conv1.weight.detach().abs().mean((0, 1))
    outcome = trainer.fit()
    traces = outcome.traces
    kernels = {name for name, p in trainer.model.named_parameters() if p.ndim == 4}
    assert list(traces.scalings) == [0, 1, 2]
    assert all(set(scalings) == kernels for scalings in traces.scalings.values())
    assert traces.scalings[0]["conv1.weight"] == [[1.0] * 3] * 3
    last = torch.tensor(traces.scalings[2]["conv1.weight"])
    torch.testing.assert_close(last, outcome.scalings["conv1.weight"], rtol=1e-4, atol=0)
    assert list(traces.kernels) == [0, 1, 2, 3, 4]
    torch.testing.assert_close(torch.tensor(traces.kernels[0]["conv1.weight"]), start, rtol=1e-4, atol=0)
    end = trainer.model.conv1.weight.detach().abs().mean((0, 1))
    torch.testing.assert_close(torch.tensor(traces.kernels[4]["conv1.weight"]), end, rtol=1e-4, atol=0)
    norms = {name: m for name, m in trainer.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {f"{name}.weight" for name in norms} == set(traces.norm_weights)
    for name, norm in norms.items():
        deciles = traces.norm_weights[f"{name}.weight"]
        assert len(deciles) == 11
        assert deciles[0] == pytest.approx(norm.weight.min().item(), rel=1e-4)
        assert deciles[5] == pytest.approx(norm.weight.median().item(), rel=0.05)
        assert deciles[-1] == pytest.approx(norm.weight.max().item(), rel=1e-4)


def test_the_bins_give_accuracy_and_calibration_error_of_the_last_epoch(recipe, images):
    outcome = Trainer(Run(replace(recipe, pgt=PgtSettings(alpha=0.5)), "pgt"), images, runtime=CPU).fit()
    assert set(outcome.traces.reliability) == {"", "_at_alpha"}
    for suffix, bins in outcome.traces.reliability.items():
        count, confidence, accuracy = torch.tensor(bins).double()
        assert count.sum() == len(images.test)
        assert ((count * accuracy).sum() / count.sum()).item() == pytest.approx(outcome.history[-1]["test_accuracy"])
        error = (count * (accuracy - confidence)).abs().sum() / count.sum()
        assert error.item() == pytest.approx(outcome.history[-1][f"test_calibration_error{suffix}"], abs=1e-4)


def test_norms_by_hand(recipe, images):
    """With one step an epoch, the norms are those of its batch and of its gradient."""
    trainer = Trainer(Run(replace(recipe, batch_size=48, epochs=1)), images, runtime=CPU)
    batch, target = next(iter(trainer.loaders.train))
    trainer.wrapped.train()
    output = trainer.wrapped(batch)
    gradients = torch.autograd.grad(trainer.criterion(output, target), list(trainer.model.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    trainer = Trainer(Run(replace(recipe, batch_size=48, epochs=1)), images, runtime=CPU)
    record = trainer.fit().history[0]
    assert record["train_logit_norm"] == pytest.approx(output.norm(dim=1).mean().item(), rel=1e-5)
    assert record["train_logit_spread"] == pytest.approx(output.std(dim=1, correction=0).mean().item(), rel=1e-5)
    assert record["train_gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert record["train_gradient_norm_std"] == pytest.approx(0, abs=1e-5)


def test_the_gradient_is_read_before_a_method_alters_it(recipe, images):
    """Clipped to a small norm, the gradient is read with the norm of the loss's own."""
    clipped = Trainer(Run(replace(recipe, batch_size=48, epochs=1, clip_norm=1e-3)), images, runtime=CPU)
    free = Trainer(Run(replace(recipe, batch_size=48, epochs=1)), images, runtime=CPU)
    assert clipped.fit().history[0]["train_gradient_norm"] == free.fit().history[0]["train_gradient_norm"] > 0.01


def test_micro_batches_read_all_images(recipe, images):
    whole, parts = (
        Trainer(Run(replace(recipe, micro_batches=parts, epochs=1)), images, runtime=CPU) for parts in (1, 4)
    )
    for trainer in (whole, parts):
        trainer.wrapped.train = trainer.model.eval  # normalises each micro-batch alike
        trainer.fit()
    for name in NUMBERS - {"train_gradient_norm_std"}:
        assert parts.history[0][name] == pytest.approx(whole.history[0][name], rel=1e-4)


def test_a_few_steps_of_a_long_epoch_are_read(recipe):
    recorder = traces_module.TraceRecorder(1, torch.device("cpu"))
    recorder.start_epoch(0, nn.Linear(1, 1), [], False)
    for step in range(100):
        recorder.start_step(step, 100)
        recorder.output(torch.full((2, 5), float(step)))
    images = recorder._sums[0].item()
    assert images == 2 * 17  # every sixth step
    assert recorder.statistics(one)["train_logit_norm"] == pytest.approx(5**0.5 * sum(range(0, 100, 6)) / 17)


def test_a_step_with_overflow_is_left_out():
    recorder = traces_module.TraceRecorder(1, torch.device("cpu"))
    model = nn.Linear(1, 1, bias=False)
    for gradient in (float("inf"), 3.0, float("nan")):
        recorder.start_step(0, 1)
        model.weight.grad = torch.full((1, 1), gradient)
        recorder.gradients(model)
    assert recorder.statistics(one) == {"train_gradient_norm": 3.0, "train_gradient_norm_std": 0.0}


def without_seconds(history):
    return [{k: v for k, v in record.items() if not k.endswith("_seconds")} for record in history]


@pytest.mark.parametrize("method", ["sgs+pgt", "dyrep"])
def test_a_resumed_run_has_the_traces_of_the_run_never_stopped(method, recipe, images, tmp_path):
    run = Run(replace(recipe, epochs=4), method, 3)
    expected = Trainer(run, images, runtime=CPU).fit()
    with pytest.raises(KilledError):
        Trainer(run, images, runtime=CPU, folder=tmp_path, on_epoch=kill).fit()
    resumed = Trainer(run, images, runtime=CPU, folder=tmp_path)
    assert resumed.resume()
    outcome = resumed.fit()
    assert asdict(outcome.traces) == asdict(expected.traces)
    assert expected.traces.kernels
    assert without_seconds(outcome.history) == without_seconds(expected.history)
    again = Trainer(run, images, runtime=CPU, folder=tmp_path)
    assert again.resume()
    assert asdict(again.fit().traces) == asdict(expected.traces)  # nothing is left to train


@pytest.mark.parametrize("method", ["plain", "sgs+pgt", "dyrep"])
def test_traces_change_nothing_else(method, recipe, images):
    outcomes, states = [], []
    for enabled in (True, False):
        trainer = Trainer(Run(recipe, method, 1), images, runtime=replace(CPU, traces=enabled))
        outcomes.append(trainer.fit())
        states.append(trainer.model.state_dict())
    on, off = outcomes
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert off.traces == traces_module.Traces()
    for record, other in zip(without_seconds(on.history), without_seconds(off.history), strict=True):
        assert record.keys() - other.keys() == NUMBERS
        assert {name: record[name] for name in other} == other


def test_traces_of_a_checkpoint_in_another_form_are_refused(recipe, images):
    trainer = Trainer(Run(recipe), images, runtime=CPU)
    state = trainer.state_dict() | {"traces": {"scalings": []}}
    with pytest.raises(InputError, match=r"expected traces of the checkpoint .* got \['scalings'\]"):
        trainer.load_state_dict(state)


def test_a_model_without_convolutions_has_no_kernels():
    recorder = traces_module.TraceRecorder(1, torch.device("cpu"))
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    recorder.start_epoch(0, model, [], False)
    recorder.end_epoch(0, model, one)
    assert recorder.traces == traces_module.Traces(kernels={0: {}, 1: {}}, norm_weights={"1.weight": [1.0] * 11})
