"""The batches that the callback for Lightning measures on: those of training."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from integrations.plain_loop import BATCH, EPOCHS, assert_same, data, plain

pytest.importorskip("lightning")
from lightning.pytorch import LightningDataModule

from backpass.integrations.lightning import _before_transfer
from integrations.lightning_loop import Module, trained

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

SHUFFLED = [2, 5, 4, 1, 0, 3]  # columns; three times is no change


class Hooks:
    """Make the batches of the plain loop from shuffled images in dictionaries, a step in each hook."""

    def on_before_batch_transfer(self, batch: dict[str, Tensor], _: int) -> dict[str, Tensor]:
        return {"x": batch["x"][..., SHUFFLED], "y": batch["y"]}

    def transfer_batch_to_device(self, batch: dict[str, Tensor], *_: Any) -> dict[str, Tensor]:
        return {"x": batch["x"][..., SHUFFLED], "y": batch["y"]}

    def on_after_batch_transfer(self, batch: dict[str, Tensor], _: int) -> tuple[Tensor, Tensor]:
        return batch["x"][..., SHUFFLED], batch["y"]


def dictionaries() -> DataLoader[Any]:
    return DataLoader([{"x": x, "y": y} for x, y in zip(*data(), strict=True)], batch_size=BATCH)


class ModuleWithHooks(Hooks, Module):
    pass


class DataWithHooks(Hooks, LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return dictionaries()


class DataWithoutHooks(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return dictionaries()


@pytest.mark.parametrize("forward", [None, lambda module, batch: module.model(batch[0])])
@pytest.mark.parametrize(
    ("module", "batches"),
    [(ModuleWithHooks, dictionaries), (ModuleWithHooks, DataWithoutHooks), (Module, DataWithHooks)],
)
def test_the_hooks_of_the_transfer_prepare_measuring_batches(
    tmp_path: Path, module: Any, batches: Any, forward: Any
) -> None:
    steps, _ = trained(tmp_path, module=module(), batches=batches(), forward=forward)
    assert_same(steps, plain())


class Augmenting(Module):
    """Adds noise in training, and keeps what the model receives."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[tuple[bool, Tensor]] = []
        self.model[3].eval()

    def on_after_batch_transfer(self, batch: list[Tensor], _: int) -> list[Tensor]:
        x, y = batch
        assert not self.model[3].training
        return (
            [x + random.random() * torch.from_numpy(numpy.random.rand(*x.shape)).float(), y] if self.training else batch
        )

    def forward(self, x: Tensor) -> Tensor:
        self.received.append((self.training, x))
        return super().forward(x)


def test_measuring_batches_are_augmented_as_in_training_and_change_no_later_one(tmp_path: Path) -> None:
    random.seed(0)
    numpy.random.seed(0)
    trained(tmp_path, module=(module := Augmenting()))
    trained_on = [x for training, x in module.received if training]
    measured_on = [x for training, x in module.received if not training]
    assert len(measured_on) == 2 * 2 * (EPOCHS - 1)  # two batches, twice, from epoch 1 on
    for epoch in range(1, EPOCHS):
        first = trained_on[epoch * 8 : epoch * 8 + 2]
        twice = measured_on[(epoch - 1) * 4 : epoch * 4]
        torch.testing.assert_close(twice, first * 2, rtol=0, atol=0)


def test_batches_of_another_form(tmp_path: Path) -> None:
    steps, _ = trained(tmp_path, forward=lambda module, batch: module.model(batch[0]))
    assert_same(steps, plain())


@pytest.mark.parametrize("forward", [None, lambda module, batch: module.model(batch[0] + torch.zeros(1))])
@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)])
def test_models_in_another_precision(tmp_path: Path, precision: str, dtype: torch.dtype, forward: Any) -> None:
    steps, _ = trained(tmp_path, precision=precision, forward=forward)
    assert_same(steps, plain(dtype=dtype))
    with pytest.raises(AssertionError, match="step"):
        assert_same(steps, plain(dtype=dtype, sgs=False))


def test_the_hooks_of_a_data_module_of_the_older_package() -> None:
    older = pytest.importorskip("pytorch_lightning")

    class Data(older.LightningDataModule):
        def on_before_batch_transfer(self, batch: Tensor, _: int) -> Tensor:
            return batch + 1

    for module, expected in ((Data(), 2), (older.LightningDataModule(), 1), (None, 1)):
        trainer = SimpleNamespace(datamodule=module)
        assert _before_transfer(trainer, Module(), torch.ones(())) == expected
