"""The callback for Lightning: the gradients of the plain loop, step by step."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import backpass
from backpass.errors import InputError, NoEffectWarning
from integrations.plain_loop import (
    BATCH,
    EPOCHS,
    OPTIONS,
    RESUMED,
    assert_same,
    loader,
    net,
    plain,
)

pytest.importorskip("lightning")
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.tuner import Tuner

from backpass.integrations.lightning import SpatialGradientScalingCallback
from integrations.lightning_loop import Module, trained, trainer_of

LIGHTNING = version("lightning")
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_those_of_the_plain_loop(
    tmp_path: Path, accumulate: int, clip: float | None, autocast: bool
) -> None:
    options = {"precision": "bf16-mixed"} if autocast else {}
    steps, _ = trained(tmp_path, accumulate_grad_batches=accumulate, gradient_clip_val=clip, **options)
    expected = plain(accumulate=accumulate, clip=clip, autocast=autocast)
    assert_same(steps, expected, autocast=autocast)
    without = plain(accumulate=accumulate, clip=clip, autocast=autocast, sgs=False)
    with pytest.raises(AssertionError, match="step"):
        assert_same(steps, without, autocast=autocast)


def test_updates_are_scaled_in_the_step(tmp_path: Path) -> None:
    steps, _ = trained(tmp_path, sgs={"apply": "update"})
    assert_same(steps, plain(apply="update"))
    with pytest.raises(AssertionError, match="step"):
        assert_same(steps, plain(sgs=False))


def test_scaling_can_be_left_to_the_module(tmp_path: Path) -> None:
    with pytest.warns(NoEffectWarning):
        steps, _ = trained(tmp_path, sgs={"scale": False})
    assert_same(steps, plain(sgs=False))
    steps, _ = trained(tmp_path, sgs={"scale": False, "apply": "update"})
    assert_same(steps, plain(sgs=False))


def test_another_loader_can_be_measured(tmp_path: Path) -> None:
    other = [torch.randn(BATCH, *next(iter(loader()))[0].shape[1:])]
    steps, _ = trained(tmp_path, sgs={"loader": other})
    assert_same(steps, plain(measured=other))
    with pytest.raises(AssertionError, match="step"):
        assert_same(steps, plain())


def test_manual_optimization(tmp_path: Path) -> None:
    steps, _ = trained(tmp_path, module=Module(manual=True))
    assert_same(steps, plain())


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_resumed_run_is_the_one_that_was_never_stopped(tmp_path: Path, epochs: int) -> None:
    first, trainer = trained(tmp_path, epochs=epochs, sgs=RESUMED)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    rest, _ = trained(tmp_path, resume=tmp_path / "last.ckpt", sgs=RESUMED)
    assert_same(first + rest, plain(**RESUMED))


@pytest.mark.skipif(LIGHTNING.startswith("2.4."), reason="trains more steps after such a checkpoint, also without SGS")
def test_a_run_resumed_after_the_last_step_of_an_epoch(tmp_path: Path) -> None:
    every_epoch = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=len(loader()), save_top_k=-1)
    steps, _ = trained(tmp_path, callbacks=[SpatialGradientScalingCallback(**OPTIONS), every_epoch])
    assert_same(steps, plain())
    for step in (8, 16):  # Lightning begins the next epoch without ``on_train_epoch_start``
        rest, _ = trained(tmp_path, resume=tmp_path / f"step={step}.ckpt")
        assert_same(steps[:step] + rest, plain())


def test_a_run_resumed_within_an_epoch_is_not_measured_again(tmp_path: Path) -> None:
    callback = SpatialGradientScalingCallback(**OPTIONS)
    within = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=12, save_top_k=-1)
    trained(tmp_path, callbacks=[callback, within])
    trained(tmp_path, callbacks=[callback], resume=tmp_path / "step=12.ckpt", epochs=2)
    saved = torch.load(tmp_path / "step=12.ckpt", weights_only=True)["callbacks"][callback.state_key]
    torch.testing.assert_close(callback.sgs.scalings, saved["scalings"], rtol=0, atol=0)


class RestoredLate(SingleDeviceStrategy):
    """Restores a checkpoint after ``on_fit_start``, as the strategies of FSDP2 and DeepSpeed do."""

    restore_checkpoint_after_setup = True


def test_strategies_that_restore_after_setup(tmp_path: Path) -> None:
    first, trainer = trained(tmp_path, epochs=2, sgs=RESUMED)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    rest, _ = trained(tmp_path, resume=tmp_path / "last.ckpt", sgs=RESUMED, strategy=RestoredLate("cpu"))
    assert_same(first + rest, plain(**RESUMED))


def test_a_fit_takes_no_state_of_an_earlier_fit(tmp_path: Path) -> None:
    first, trainer = trained(tmp_path, epochs=2, sgs=RESUMED)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    callback = SpatialGradientScalingCallback(**(OPTIONS | RESUMED))
    for _ in range(2):
        rest, _ = trained(tmp_path, resume=tmp_path / "last.ckpt", callbacks=[callback])
        assert_same(first + rest, plain(**RESUMED))
        steps, _ = trained(tmp_path, callbacks=[callback])
        assert_same(steps, plain(**RESUMED))


@pytest.mark.parametrize("stage", ["test", "validate", "predict"])
def test_a_checkpoint_that_is_evaluated_changes_no_fit(tmp_path: Path, stage: str) -> None:
    _, other = trained(tmp_path, sgs={"k": 5.0})
    other.save_checkpoint(tmp_path / "other.ckpt")
    callback = SpatialGradientScalingCallback(**OPTIONS)
    trainer = trainer_of(tmp_path, [callback], max_epochs=EPOCHS)

    def evaluate() -> None:
        getattr(trainer, stage)(Module(), loader(), ckpt_path=tmp_path / "other.ckpt")

    evaluate()
    assert callback.state_dict() == {}
    trainer.fit(module := Module(), loader())
    assert_same(module.steps, plain())
    scalings = callback.sgs.state_dict()["scalings"]
    evaluate()
    torch.testing.assert_close(callback.state_dict()["scalings"], scalings, rtol=0, atol=0)


class Failing(Callback):
    """Fails when a fit starts, after the states of a checkpoint were loaded."""

    def on_fit_start(self, *_: Any) -> None:
        raise RuntimeError


def test_a_fit_takes_no_state_of_one_that_failed(tmp_path: Path) -> None:
    _, trainer = trained(tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    callback = SpatialGradientScalingCallback(**OPTIONS)
    with pytest.raises(RuntimeError):
        trained(tmp_path, callbacks=[Failing(), callback], epochs=EPOCHS + 1, resume=tmp_path / "last.ckpt")
    steps, _ = trained(tmp_path, callbacks=[callback])
    assert_same(steps, plain())


def test_a_state_loaded_before_a_fit(tmp_path: Path) -> None:
    trained(tmp_path, callbacks=[trained_one := SpatialGradientScalingCallback(**OPTIONS)])
    callback = SpatialGradientScalingCallback(**(OPTIONS | {"warmup": EPOCHS}))
    callback.load_state_dict(trained_one.state_dict())
    trained(tmp_path, callbacks=[callback])
    torch.testing.assert_close(callback.sgs.scalings, trained_one.sgs.scalings, rtol=0, atol=0)


@pytest.mark.skipif(LIGHTNING.startswith("2.4."), reason="the steps of its search are missing from the training")
def test_a_search_for_the_learning_rate_at_the_start_of_a_fit(tmp_path: Path) -> None:
    finder = LearningRateFinder(num_training_steps=4, early_stop_threshold=None, update_attr=False)
    steps, _ = trained(tmp_path, callbacks=[finder, SpatialGradientScalingCallback(**OPTIONS)])
    assert_same(steps[4:], plain())


def test_the_state_before_a_fit_is_what_was_loaded() -> None:
    callback = SpatialGradientScalingCallback(**OPTIONS)
    assert callback.state_dict() == {}
    callback.load_state_dict(state := backpass.SpatialGradientScaling(net()).state_dict())
    assert callback.state_dict() == state


@pytest.mark.parametrize("epochs", [0, 1])
def test_persistent_workers_lose_no_batch(tmp_path: Path, epochs: int) -> None:
    sgs = {"warmup": 0}  # measured at epoch 0, and where a run of one epoch resumes
    batches = DataLoader(loader().dataset, batch_size=BATCH, num_workers=1, persistent_workers=True)
    first, resume = [], None
    if epochs:
        first, trainer = trained(tmp_path, epochs=epochs, sgs=sgs)
        trainer.save_checkpoint(resume := tmp_path / "last.ckpt")
    rest, _ = trained(tmp_path, resume=resume, sgs=sgs, batches=batches)
    assert_same(first + rest, plain(**sgs))


def test_a_search_for_the_learning_rate_before_any_fit(tmp_path: Path) -> None:
    callback = SpatialGradientScalingCallback(**OPTIONS)
    trainer = trainer_of(tmp_path, [callback], max_epochs=1)
    Tuner(trainer).lr_find(Module(), loader(), num_training=4, update_attr=False)
    assert callback.state_dict() == {}


def test_a_training_that_ends_before_it_measures_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(NoEffectWarning, match="1 epochs of training end before scalings are measured, at epoch 1"):
        trained(tmp_path, epochs=1, sgs={"warmup": 1})


@pytest.mark.parametrize("steps", [1, len(loader())])
def test_a_training_whose_steps_end_before_it_measures_is_warned_of(tmp_path: Path, steps: int) -> None:
    callback = SpatialGradientScalingCallback(warmup=1)
    trainer = trainer_of(tmp_path, [callback], max_epochs=5, max_steps=steps)
    with pytest.warns(NoEffectWarning, match="epochs of training end before scalings are measured, at epoch 1"):
        trainer.fit(Module(), loader())


def test_callbacks_with_parts_of_their_own(tmp_path: Path) -> None:
    first, second, *_ = (f"*{name}" for name, module in net().named_modules() if isinstance(module, torch.nn.Conv2d))
    callbacks = [SpatialGradientScalingCallback(**OPTIONS, include=[name]) for name in (first, second)]
    trainer = trainer_of(tmp_path, callbacks, max_epochs=1)
    trainer.fit(Module(), loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    states = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert [len(state["scalings"]) for state in states.values() if "scalings" in state] == [1, 1]


def test_several_loaders_are_refused(tmp_path: Path) -> None:
    callback = SpatialGradientScalingCallback(**OPTIONS)
    trainer = trainer_of(tmp_path, [callback], max_epochs=2)
    with pytest.raises(InputError, match="expected one training loader, got dict of 1; pass the one"):
        trainer.fit(Module(), {"a": loader()})
