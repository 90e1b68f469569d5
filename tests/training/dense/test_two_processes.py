"""Both tasks in two processes: one result, and evaluation that counts every image once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from examples.generated_scenes.city import write_city
from examples.generated_scenes.people import write_people

from backpass.training import Run, Runtime, Trainer
from backpass.training.datasets import load_dataset
from reference.two_processes import on_two_processes
from training.dense.test_tasks import KEYPOINTS, SEGMENTATION

CPU = Runtime(device="cpu", workers=0)


def train(folder: Path) -> dict[str, list]:
    """Train both tasks for an epoch; return history and scalings, and the evaluation of fresh weights."""
    notes = {}
    for recipe, method, data in ((SEGMENTATION, "sgs+pgt", "cityscapes:city"), (KEYPOINTS, "sgs", "mpii:people")):
        kind, _, name = data.partition(":")
        recipe = replace(recipe, data=replace(recipe.data, name=f"{kind}:{folder / name}"))
        trainer = Trainer(Run(recipe, method), load_dataset(recipe.data.name), runtime=CPU)
        fresh = trainer.evaluate()
        outcome = trainer.fit()
        record = {key: value for key, value in outcome.history[0].items() if not key.endswith("seconds")}
        scalings = {name: scaling.tolist() for name, scaling in outcome.scalings.items()}
        notes[recipe.task] = [fresh, record, scalings]
    return notes


def train_on_a_rank(rank: int, folder: Path) -> None:
    (folder / f"{rank}.json").write_text(json.dumps(train(folder)))


@pytest.mark.slow
def test_two_processes_agree_and_evaluate_as_one(tmp_path):
    write_city(tmp_path / "city", 8, 3)
    write_people(tmp_path / "people", 8, 3)
    on_two_processes(train_on_a_rank, tmp_path)
    alone = train(tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for task, (fresh, _, scalings) in first.items():
        # Weights are drawn alike, and scalings measured on the same union of batches.
        torch.testing.assert_close(fresh, alone[task][0])
        assert scalings.keys() == alone[task][2].keys()
        for name, scaling in scalings.items():
            torch.testing.assert_close(torch.tensor(scaling), torch.tensor(alone[task][2][name]), rtol=1e-4, atol=1e-5)
