"""A run that is resumed is the run that was never stopped."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from backpass.errors import InputError, StateError
from backpass.training.classification import ClassificationEvaluation
from backpass.training.recipe import Run, Runtime
from backpass.training.trainer import Trainer

METHODS = ["plain", "sgs", "pgt", "agc", "sgs+pgt", "sgs+agc", "repvgg", "dbb", "dyrep"]


class KilledError(Exception):
    pass


def kill_after(epoch):
    def kill(record):
        if record["epoch"] == epoch:
            raise KilledError

    return kill


def without_seconds(history):
    return [{k: v for k, v in record.items() if not k.endswith("_seconds")} for record in history]


def stopped_and_resumed(run, images, runtime, folder, epoch=0):
    with pytest.raises(KilledError):
        Trainer(run, images, runtime=runtime, folder=folder, on_epoch=kill_after(epoch)).fit()
    trainer = Trainer(run, images, runtime=runtime, folder=folder)
    assert trainer.resume()
    assert len(trainer.history) == epoch + 1
    return trainer


def record_dtypes():
    """Return a set that collects the dtype of every convolution's output in training mode."""
    dtypes = set()

    def note(module, args, output):
        if isinstance(module, nn.Conv2d) and module.training:
            dtypes.add(output.dtype)

    handle = nn.modules.module.register_module_forward_hook(note)
    return dtypes, handle


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_the_run_never_stopped(method, precision, recipe, images, tmp_path):
    run, runtime = Run(recipe, method, 3), Runtime(device="cpu", precision=precision)
    whole = Trainer(run, images, runtime=runtime)
    expected = whole.fit()
    trainer = stopped_and_resumed(run, images, runtime, tmp_path, epoch=1)
    outcome = trainer.fit()
    state, other = trainer.model.state_dict(), whole.model.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())
    assert without_seconds(outcome.history) == without_seconds(expected.history)
    assert outcome.scalings.keys() == expected.scalings.keys()
    assert all(torch.equal(outcome.scalings[name], s) for name, s in expected.scalings.items())


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("method", ["plain", "sgs+pgt", "repvgg", "dyrep"])
def test_every_forward_pass_runs_in_the_precision_of_the_runtime(method, precision, dtype, recipe, images, tmp_path):
    """In each epoch, before and after a growth, and after the run is resumed."""
    runtime = Runtime(device="cpu", precision=precision)
    run = Run(replace(recipe, epochs=4), method, 0)
    seen = []
    dtypes, handle = record_dtypes()
    try:

        def end_epoch(record):
            seen.append(set(dtypes))
            dtypes.clear()
            kill_after(1)(record)

        with pytest.raises(KilledError):
            Trainer(run, images, runtime=runtime, folder=tmp_path, on_epoch=end_epoch).fit()
        trainer = Trainer(run, images, runtime=runtime, folder=tmp_path, on_epoch=end_epoch)
        trainer.resume()
        outcome = trainer.fit()
    finally:
        handle.remove()
    assert seen == [{dtype}] * 4
    assert len(outcome.history) == 4
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


@pytest.mark.parametrize(
    ("method", "precision"),
    [("plain", "no"), ("plain", "bf16"), ("dyrep", "bf16"), pytest.param("dyrep", "no", marks=pytest.mark.slow)],
)
def test_every_epoch_runs_compiled(method, precision, recipe, images, tmp_path, monkeypatch):
    """Also after a growth and after the run is resumed, where the new parameters are those that the graph reads."""
    graphs, epoch = Counter(), 0
    compile_module = nn.Module.compile

    def backend(graph, _):
        def run(*args):
            graphs[epoch] += 1
            return graph.forward(*args)

        return run

    def end_epoch(record):
        nonlocal epoch
        epoch += 1
        kill_after(0)(record)

    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend=backend))
    runtime = Runtime(device="cpu", precision=precision, compile=True)
    run = Run(recipe, method, 0)
    torch.compiler.reset()
    with pytest.raises(KilledError):
        Trainer(run, images, runtime=runtime, folder=tmp_path, on_epoch=end_epoch).fit()
    trainer = Trainer(run, images, runtime=runtime, folder=tmp_path, on_epoch=end_epoch)
    trainer.resume()
    trainer.fit()
    torch.compiler.reset()
    steps = len(trainer.loaders.train)
    assert all(graphs[number] >= steps for number in range(recipe.epochs))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["plain", "sgs+pgt", "dyrep"])
def test_float16_with_a_loss_scale_resumes_in_float16(method, recipe, images, tmp_path):
    runtime = Runtime(precision="fp16")
    dtypes, handle = record_dtypes()
    try:
        trainer = stopped_and_resumed(Run(recipe, method), images, runtime, tmp_path)
        scale = trainer.accelerator.scaler.state_dict()
        trainer.fit()
    finally:
        handle.remove()
    assert dtypes == {torch.float16}
    assert scale["scale"] > 0
    assert trainer.accelerator.scaler.state_dict()["_growth_tracker"] > scale["_growth_tracker"]


def test_a_run_with_numbers_of_numpy_resumes(recipe, images, tmp_path, monkeypatch):
    """Checkpoints load with ``weights_only=True``, which takes no NumPy number."""
    compute = ClassificationEvaluation.compute
    monkeypatch.setattr(
        ClassificationEvaluation, "compute", lambda *args: {k: np.float64(v) for k, v in compute(*args).items()}
    )
    optimizer = replace(recipe.optimizer, lr=np.geomspace(0.01, 0.1, 3)[1])
    run = Run(replace(recipe, optimizer=optimizer), seed=np.arange(2)[1])
    trainer = Trainer(run, images, runtime=Runtime(device="cpu"), folder=tmp_path)
    trainer.fit()
    assert Trainer(run, images, runtime=Runtime(device="cpu"), folder=tmp_path).resume()


def test_half_precision_is_refused_on_a_cpu(recipe, images):
    with pytest.raises(InputError, match="expected precision no or bf16 on a CPU, got fp16; choose another precision"):
        Trainer(Run(recipe), images, runtime=Runtime(device="cpu", precision="fp16"))


def test_another_precision_in_the_same_process_is_refused(recipe, images):
    """Accelerate keeps the precision of the first run for all that follow."""
    Trainer(Run(recipe), images, runtime=Runtime(device="cpu"))
    with pytest.raises(InputError, match=r"precision in a process, got precision='bf16' after .*new process"):
        Trainer(Run(recipe), images, runtime=Runtime(device="cpu", precision="bf16"))


def test_another_device_in_the_same_process_is_refused(recipe, images, monkeypatch):
    """Accelerate keeps the device of the first run, too."""
    Trainer(Run(recipe), images, runtime=Runtime(device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match=r"got device='auto' after a run on cpu; use a new process"):
        Trainer(Run(recipe), images, runtime=Runtime())
    monkeypatch.setattr("backpass.training.processes.join", lambda runtime: torch.device("cuda"))
    with pytest.raises(InputError, match=r"got device='cpu' after a run on cuda; use a new process"):
        Trainer(Run(recipe), images, runtime=Runtime(device="cpu"))


def test_other_numbers_of_items_are_refused(recipe, images, tmp_path):
    run, runtime = Run(recipe, "plain", 0), Runtime(device="cpu")
    Trainer(run, images, runtime=runtime, folder=tmp_path).fit()
    fewer = replace(images, train=images.train.select(torch.arange(32)))
    with pytest.raises(InputError, match=r"items\.train: expected 32, received 48; restore the data, or choose"):
        Trainer(run, fewer, runtime=runtime, folder=tmp_path).resume()


def test_the_checkpoint_of_another_run_is_not_overwritten(recipe, images, tmp_path):
    runtime = Runtime(device="cpu")
    Trainer(Run(recipe, "plain", 0), images, runtime=runtime, folder=tmp_path).fit()
    with pytest.raises(InputError, match="belongs to another run: method: expected 'pgt', received 'plain'"):
        Trainer(Run(recipe, "pgt", 0), images, runtime=runtime, folder=tmp_path).fit()
    assert Trainer(Run(recipe, "plain", 0), images, runtime=runtime, folder=tmp_path).resume()


def test_a_state_from_elsewhere_does_not_overwrite_the_checkpoint_of_another_run(recipe, images, tmp_path):
    runtime = Runtime(device="cpu")
    Trainer(Run(recipe, "plain", 0), images, runtime=runtime, folder=tmp_path).fit()
    started = Trainer(Run(recipe, "pgt", 0), images, runtime=runtime, on_epoch=kill_after(0))
    with pytest.raises(KilledError):
        started.fit()
    trainer = Trainer(Run(recipe, "pgt", 0), images, runtime=runtime, folder=tmp_path)
    trainer.load_state_dict(started.state_dict())
    with pytest.raises(InputError, match="belongs to another run: method: expected 'pgt', received 'plain'"):
        trainer.fit()
    assert Trainer(Run(recipe, "plain", 0), images, runtime=runtime, folder=tmp_path).resume()


def test_training_does_not_go_on_from_the_middle_of_an_epoch(recipe, images, tmp_path):
    def interrupt(epoch, step, steps):
        if (epoch, step) == (1, 2):
            raise KeyboardInterrupt

    run, runtime = Run(recipe, "plain", 0), Runtime(device="cpu")
    whole = Trainer(run, images, runtime=runtime)
    whole.fit()
    trainer = Trainer(run, images, runtime=runtime, folder=tmp_path, on_step=interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    with pytest.raises(StateError, match=r"one that an interrupted epoch left; load a checkpoint with resume\(\)"):
        trainer.fit()
    trainer.on_step = lambda *_: None
    assert trainer.resume()
    assert without_seconds(trainer.fit().history) == without_seconds(whole.history)


def test_a_run_that_resumes_without_traces_has_none(recipe, images, tmp_path):
    run = Run(recipe, "sgs", 0)
    stopped = Trainer(run, images, runtime=Runtime(device="cpu", traces=True), folder=tmp_path, on_epoch=kill_after(1))
    with pytest.raises(KilledError):
        stopped.fit()
    trainer = Trainer(run, images, runtime=Runtime(device="cpu"), folder=tmp_path)
    assert trainer.resume()
    assert trainer.fit().traces == Trainer(run, images, runtime=Runtime(device="cpu")).fit().traces
