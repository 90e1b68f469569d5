"""The callback and the loss for the Hugging Face Trainer: the gradients of the plain loop, step by step."""

import copy
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

import backpass
from integrations.plain_loop import (
    ALPHA,
    BATCH,
    EPOCHS,
    OPTIONS,
    RESUMED,
    Gradients,
    assert_same,
    data,
    net,
    optimizer_of,
    plain,
    recorded,
)

pytest.importorskip("transformers")
from transformers import Trainer, TrainerCallback, TrainingArguments

from backpass.errors import InputError, NoEffectWarning
from backpass.integrations.transformers import PowerGradLoss, SpatialGradientScalingCallback

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


class Images(Dataset[dict[str, Tensor]]):
    def __init__(self, one_hot: bool = False) -> None:
        self.one_hot = one_hot

    def __len__(self) -> int:
        return len(data()[0])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = data()
        labels = nn.functional.one_hot(y, 3).float() if self.one_hot else y
        return {"pixel_values": x[index], "labels": labels[index]}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = net()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.model(pixel_values)
        return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}


class InOrder(Trainer):
    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(Images())


def trained(folder: Path, *, resume: bool = False, **options: Any) -> Gradients:
    trainer, steps = made(folder, **options)
    trainer.train(resume_from_checkpoint=resume)
    return steps


def made(
    folder: Path,
    *,
    epochs: int = EPOCHS,
    accumulate: int = 1,
    clip: float | None = None,
    autocast: bool = False,
    batch: int = BATCH,
    dataset: Any = None,
    max_steps: int = -1,
    restore_callback_states_from_checkpoint: bool = False,
    kind: type[Trainer] = InOrder,
    **options: Any,
) -> tuple[Trainer, Gradients]:
    arguments = TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=clip or 0.0,
        bf16=autocast,
        use_cpu=True,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        report_to="none",
        save_strategy="epoch",
        disable_tqdm=True,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
        max_steps=max_steps,
        restore_callback_states_from_checkpoint=restore_callback_states_from_checkpoint,
        seed=0,
    )
    model = Model()
    optimizer = optimizer_of(model)
    steps = recorded(optimizer, model.model)
    trainer = kind(
        model,
        arguments,
        train_dataset=dataset or Images(),
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
        compute_loss_func=PowerGradLoss(alpha=ALPHA),
    )
    trainer.add_callback(SpatialGradientScalingCallback(trainer, **(OPTIONS | options)))
    return trainer, steps


def test_a_training_that_ends_before_it_measures_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(NoEffectWarning, match="1 epochs of training end before scalings are measured, at epoch 1"):
        trained(tmp_path, epochs=1, warmup=1)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_those_of_the_plain_loop(
    tmp_path: Path, accumulate: int, clip: float | None, autocast: bool
) -> None:
    steps = trained(tmp_path, accumulate=accumulate, clip=clip, autocast=autocast)
    assert_same(steps, plain(accumulate=accumulate, clip=clip, autocast=autocast), autocast=autocast)
    for without in ({"sgs": False}, {"pgt": False}):
        with pytest.raises(AssertionError, match="step"):
            assert_same(steps, plain(accumulate=accumulate, clip=clip, autocast=autocast, **without), autocast=autocast)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_resumed_run_is_the_one_that_was_never_stopped(tmp_path: Path, epochs: int) -> None:
    first = trained(tmp_path, epochs=epochs, **RESUMED)
    rest = trained(tmp_path, resume=True, **RESUMED)
    assert_same(first + rest, plain(**RESUMED))


def test_a_resumed_run_measures_on_the_shuffled_batches_of_its_epoch(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", kind=Trainer)
    with pytest.raises(AssertionError, match="step"):
        assert_same(whole, trained(tmp_path / "other", kind=Trainer, batches=1))
    first = trained(tmp_path / "stopped", kind=Trainer, epochs=2)
    assert_same(first + trained(tmp_path / "stopped", kind=Trainer, resume=True), whole)


class Interrupted(TrainerCallback):
    """Interrupts the first training, in its second epoch."""

    interrupted = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.epoch > 1 and not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("apply", "wrapped"),
    [("gradient", None), ("gradient", "before"), ("gradient", "while training"), ("update", None)],
)
def test_training_again_after_an_interrupt(tmp_path: Path, apply: str, wrapped: str | None) -> None:
    trainer, steps = made(tmp_path, apply=apply)
    calls, own = [], trainer.training_step

    def wrap() -> None:
        step = trainer.training_step

        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            calls.append(step)
            return step(*args, **kwargs)

        trainer.training_step = wrapper

    if wrapped == "before":
        wrap()
        own = trainer.training_step
    weights = copy.deepcopy(trainer.model.state_dict())
    trainer.add_callback(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    if wrapped == "while training":
        wrap()
        own = trainer.training_step
    trainer.model.load_state_dict(weights)
    trainer.optimizer.state.clear()
    steps.clear()
    calls.clear()
    trainer.train()
    assert_same(steps, plain(apply=apply))
    assert trainer.training_step == own
    assert len(calls) == (len(steps) if wrapped else 0)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_probabilities_as_labels(tmp_path: Path, accumulate: int) -> None:
    steps = trained(tmp_path, accumulate=accumulate, dataset=Images(one_hot=True))
    assert_same(steps, plain(accumulate=accumulate))


@pytest.mark.parametrize("shape", [(8, 2), (8, 3), (8, 3, 2, 2)])
def test_the_loss_of_probabilities_is_that_of_labels(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(shape), torch.randint(shape[1], (8, *shape[2:]))
    one_hot = nn.functional.one_hot(labels, shape[1]).movedim(-1, 1).float()
    loss = PowerGradLoss(alpha=ALPHA)
    for counted in (False, True):
        expected, ours = (
            loss({"logits": logits}, y, num_items_in_batch=y.ne(-100).sum() if counted else None)
            for y in (labels, one_hot)
        )
        torch.testing.assert_close(ours, expected)


def test_callback_states_are_restored_from_the_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = trained(tmp_path, epochs=2, **RESUMED)
    trainer, rest = made(tmp_path, restore_callback_states_from_checkpoint=True, **RESUMED)
    logging.getLogger("transformers.trainer").addHandler(caplog.handler)
    try:
        trainer.train(resume_from_checkpoint=True)
    finally:
        logging.getLogger("transformers.trainer").removeHandler(caplog.handler)
    assert_same(first + rest, plain(**RESUMED))
    assert "callbacks not included" not in caplog.text


@pytest.mark.parametrize("restored", [False, True])
def test_two_callbacks_resume_as_one(tmp_path: Path, restored: bool) -> None:
    def two(epochs: int = EPOCHS, resume: bool = False) -> Gradients:
        trainer, steps = made(
            tmp_path, epochs=epochs, include=["model.0"], restore_callback_states_from_checkpoint=restored, **RESUMED
        )
        second = SpatialGradientScalingCallback(trainer, **(OPTIONS | RESUMED), include=["model.2"])
        trainer.add_callback(second)
        trainer.train(resume_from_checkpoint=resume)
        assert "training_step" not in vars(trainer)
        return steps

    first = two(epochs=2)
    assert_same(first + two(resume=True), plain(**RESUMED))


def test_a_checkpoint_from_before_there_could_be_two_callbacks(tmp_path: Path) -> None:
    first = trained(tmp_path, epochs=2, **RESUMED)
    path = next(tmp_path.glob("checkpoint-16")) / "trainer_state.json"
    state = json.loads(path.read_text())
    name = "SpatialGradientScalingState"
    [state["stateful_callbacks"][name]] = state["stateful_callbacks"][name]
    path.write_text(json.dumps(state))
    assert_same(first + trained(tmp_path, resume=True, **RESUMED), plain(**RESUMED))


def test_a_checkpoint_of_training_without_the_callback(tmp_path: Path) -> None:
    trainer, first = made(tmp_path, epochs=1)
    trainer.remove_callback(SpatialGradientScalingCallback)
    trainer.train()
    assert_same(first + trained(tmp_path, resume=True), plain())  # the first epoch is not scaled


class Stream(IterableDataset[dict[str, Tensor]]):
    """The images without a length; like an open file, it has one position for all who read it."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        images = Images()
        self.position = 0
        while self.position < len(images):
            self.position += 1
            yield images[self.position - 1]


def test_epochs_of_data_without_a_length(tmp_path: Path) -> None:
    steps = trained(tmp_path, dataset=Stream(), max_steps=EPOCHS * 8, **RESUMED)
    assert_same(steps, plain(**RESUMED))


def test_a_plain_mean_is_too_large_under_accumulation_and_this_loss_is_not() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 3), torch.randint(3, (8,))
    loss = PowerGradLoss(alpha=ALPHA)
    whole = loss({"logits": logits}, labels)
    parts = [
        loss({"logits": x}, y, num_items_in_batch=torch.tensor(8))
        for x, y in zip(logits.chunk(4), labels.chunk(4), strict=True)
    ]
    torch.testing.assert_close(sum(parts), whole)
    # Under DataParallel the Trainer passes the number for each of two devices, and multiplies the loss with two.
    torch.testing.assert_close(2 * loss({"logits": logits}, labels, num_items_in_batch=torch.full((2, 1), 8)), whole)
    torch.testing.assert_close(whole, backpass.power_grad_cross_entropy(logits, labels, alpha=ALPHA))


def test_labels_that_are_ignored_are_those_that_the_trainer_leaves_out() -> None:
    with pytest.raises(InputError, match=r"expected ignore_index=-100, .* got 255; set these labels to -100"):
        PowerGradLoss(alpha=ALPHA, ignore_index=255)
