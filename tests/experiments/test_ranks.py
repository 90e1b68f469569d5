"""One run on two ranks, and a study on two ranks, which is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from backpass.__main__ import main
from backpass.cli import commands
from backpass.errors import InputError
from backpass.experiments import RECIPES, compare_study, read_record, run_study
from backpass.experiments.progress import Progress
from backpass.experiments.run import execute, load_data
from backpass.training import checkpoint, trainer
from backpass.training.recipe import DataSettings, Run, Runtime
from reference.two_processes import on_two_processes

CPU = Runtime(device="cpu")
TINY = replace(RECIPES["digits"], epochs=2, data=DataSettings(limit_train=96, limit_test=41))
RUN = Run(TINY, "sgs+pgt", 1)


def train_on_two_ranks(rank: int, folder: Path) -> None:
    """Train, note what this rank summed, called and wrote, and start another run in the same folder."""
    sums, written, epochs = [], [], []
    whole_total, whole_written = trainer.total, checkpoint._written

    def total(tensor):
        sums.append(tensor.tolist())
        return whole_total(tensor)

    def noted(path, write):
        written.append(path.name)
        return whole_written(path, write)

    class Log(Progress):
        def end_epoch(self, record):
            epochs.append(record["epoch"])

    trainer.total, checkpoint._written = total, noted
    result = execute(RUN, load_data(TINY.data), folder / "run", runtime=CPU, progress=Log())
    training = [values for values in sums if isinstance(values[0], float) and len(values) == 3 and values[2] > 41]
    with pytest.raises(InputError) as refused:
        execute(replace(RUN, seed=2), load_data(TINY.data), folder / "run", runtime=CPU)
    notes = {
        "written": written,
        "epochs": epochs,
        "history": result.history,
        "training": training,
        "refused": str(refused.value),
    }
    (folder / f"{rank}.json").write_text(json.dumps(notes))


def name_on_two_ranks(rank: int, folder: Path) -> None:
    """Note the folder that the command chooses, and end it there."""

    def note(recipe: object, chosen: Path, **_: object) -> None:
        (folder / f"{rank}.json").write_text(json.dumps([str(chosen)]))
        raise InputError("expected no run, got one; end it")

    commands.train_run = note
    assert main(["train", "--runtime.device", "cpu"]) == 2


def on_two_ranks(target: Callable[[int, Path], None], folder: Path) -> list:
    on_two_processes(target, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_ranks_train_one_run(tmp_path):
    notes = on_two_ranks(train_on_two_ranks, tmp_path)
    assert notes[0]["history"] == notes[1]["history"] == read_record(tmp_path / "run" / "result.json").history
    for epoch, record in enumerate(notes[0]["history"]):
        halves = [note["training"][epoch] for note in notes]
        assert [half[2] for half in halves] == [48, 48]
        assert halves[0][0] != halves[1][0]
        assert record["train_loss"] == pytest.approx((halves[0][0] + halves[1][0]) / 96)
        assert record["train_accuracy"] == (halves[0][1] + halves[1][1]) / 96
        assert round(record["test_accuracy"] * 41, 4) == round(record["test_accuracy"] * 41)
    assert notes[0]["epochs"] == [0, 1]
    assert set(notes[0]["written"]) == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "model.safetensors",
        "result.json",
    }
    assert notes[1]["epochs"] == notes[1]["written"] == []
    assert notes[0]["refused"] == notes[1]["refused"]
    assert "belongs to another run: seed: expected 2, received 1" in notes[0]["refused"]


def test_two_ranks_agree_on_a_new_folder(tmp_path):
    notes = on_two_ranks(name_on_two_ranks, tmp_path)
    assert notes[0] == notes[1]


def test_a_study_on_several_ranks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    study = compare_study(TINY, ["plain"], [0])
    with pytest.raises(InputError, match="started by one process, got 2 ranks of torchrun or accelerate launch; start"):
        run_study(study, tmp_path / "study", runtime=CPU)
    assert not (tmp_path / "study").exists()
