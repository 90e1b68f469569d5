"""Between epochs both processes have one model: what is measured, cut and saved then is the same on each."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backpass.reparam.dyrep import dyrep, pruning
from backpass.training import (
    Augmentation,
    DyRepSettings,
    OptimizerSettings,
    Recipe,
    Run,
    Runtime,
    ScheduleSettings,
    SgsSettings,
    Trainer,
    load_dataset,
)
from reference.two_processes import on_two_processes

CPU = Runtime(device="cpu")
RARELY = replace(CPU, evaluate_every=3)
RECIPE = Recipe(
    model="digits_net",
    epochs=3,
    batch_size=16,
    optimizer=OptimizerSettings(lr=0.05),
    augmentation=Augmentation(crop_padding=1, cutout=2),
    sgs=SgsSettings(warmup=1, every=1, batches=1),
)
# A learning rate and a threshold under which branches are cut within three epochs.
PRUNED = replace(
    RECIPE,
    optimizer=OptimizerSettings(lr=0.4),
    schedule=ScheduleSettings(name="step", step_epochs=100),
    dyrep=DyRepSettings(every=1, until=9, metric="snip", recalibration_batches=1),
)
SPREAD = 0.002


class StoppedError(Exception):
    pass


def stop(record):
    raise StoppedError


def train(rank: int, folder: Path) -> None:
    digits = load_dataset("digits", limit_train=160, limit_test=64)

    def sgs(runtime, **options):
        return Trainer(Run(RECIPE, "sgs"), digits, runtime=runtime, **options)

    def trained(trainer):
        trainer.fit()
        return trainer.model.state_dict()

    notes = {"always": trained(sgs(CPU)), "rarely": trained(sgs(RARELY))}
    with pytest.raises(StoppedError):
        sgs(RARELY, folder=folder / "run", on_epoch=stop).fit()
    resumed = sgs(RARELY, folder=folder / "run")
    assert resumed.resume()
    notes["resumed"] = trained(resumed)

    pruning._CUT_SPREAD = SPREAD
    prune, cut = dyrep.prune, []
    dyrep.prune = lambda block, names: cut.append(names) or prune(block, names)
    notes["pruned"] = trained(Trainer(Run(PRUNED, "dyrep"), digits, runtime=CPU))
    assert cut
    torch.save(notes, folder / f"{rank}.pt")


def test_between_epochs_both_processes_have_one_model(tmp_path):
    on_two_processes(train, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    # SGS depends neither on when a run is evaluated nor on where it is resumed.
    for other in ("rarely", "resumed"):
        torch.testing.assert_close(first[other], first["always"], rtol=0, atol=0)
    # After a cut in the last epoch, both have the model whose metric is recorded.
    torch.testing.assert_close(first, second, rtol=0, atol=0)
