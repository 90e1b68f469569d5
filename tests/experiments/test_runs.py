import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from backpass.errors import InputError
from backpass.experiments.recipes import RECIPES
from backpass.experiments.runs import Progress, execute, load_data
from backpass.models import create_model
from backpass.training.recipe import DataSettings, Run, Runtime

CPU = Runtime(device="cpu")
TINY = replace(RECIPES["digits"], epochs=2, data=DataSettings(limit_train=96, limit_test=40))
RUN = Run(TINY, "sgs+pgt", 1)


class Log(Progress):
    def __init__(self):
        self.events = []

    def end_epoch(self, record):
        self.events.append("epoch")

    def end_run(self, result):
        self.events.append((result.method, result.seed))


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, execute(RUN, load_data(TINY.data), folder, runtime=CPU)


def test_a_run_folder_holds_everything(executed):
    folder, result = executed
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "model.safetensors",
        "result.json",
    }
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == result.history
    assert result.model == {
        "name": "digits_net",
        "parameters": 56554,
        "macs": 1788544,
        "deployed_parameters": 56554,
        "deployed_macs": 1788544,
    }
    assert result.data == {"label": "digits (scikit-learn)", "train": 96, "evaluated": 40, "split": "test"}
    assert result.cost["train_seconds"] == pytest.approx(sum(r["train_seconds"] for r in result.history))
    assert (result.cost["gpu_hours"], result.cost["peak_memory"]) == (None, None)
    create_model("digits_net", num_classes=10).load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    assert set(result.scalings) == {n for n, p in create_model("digits_net").named_parameters() if p.ndim == 4}


def test_a_finished_run_is_read_and_not_run_again(executed):
    folder, result = executed
    log = Log()
    assert execute(RUN, load_data(TINY.data), folder, runtime=CPU, progress=log) == result
    assert log.events == [("sgs+pgt", 1)]


def test_a_folder_of_another_run_is_refused(executed):
    folder, _ = executed
    with pytest.raises(InputError, match="holds the result of another run"):
        execute(Run(TINY, "plain", 0), load_data(TINY.data), folder, runtime=CPU)


def test_an_interrupted_run_goes_on_from_its_checkpoint(executed, tmp_path):
    _, result = executed
    data = load_data(TINY.data)

    class Stop(Log):
        def end_epoch(self, record):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(RUN, data, tmp_path, runtime=CPU, progress=Stop())
    log = Log()
    again = execute(RUN, data, tmp_path, runtime=CPU, progress=log)
    assert log.events == ["epoch", ("sgs+pgt", 1)]
    assert [r["train_loss"] for r in again.history] == [r["train_loss"] for r in result.history]
    assert again.scalings == result.scalings


def test_a_check_that_raises_abandons_the_run_after_the_step(tmp_path):
    steps = []

    def check():
        steps.append(0)
        if len(steps) == 2:
            raise RuntimeError("abandoned")

    with pytest.raises(RuntimeError, match="abandoned"):
        execute(RUN, load_data(TINY.data), tmp_path, runtime=CPU, check=check)
    assert len(steps) == 2
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("call", "written"),
    [
        (2, {"metrics.jsonl": 0, "checkpoint.pt": 0, "model.safetensors": 0}),
        (3, {"metrics.jsonl": 1, "checkpoint.pt": 1, "model.safetensors": 0}),
        (4, {"metrics.jsonl": 1, "checkpoint.pt": 1, "model.safetensors": 1}),
    ],
)
def test_a_run_that_is_abandoned_writes_no_file_any_more(call, written, tmp_path):
    calls = []

    def check():
        calls.append(0)
        if len(calls) == call:  # the first call is that of the only step
            raise RuntimeError("abandoned")

    run = Run(replace(TINY, epochs=1, batch_size=96), "plain", 0)
    with pytest.raises(RuntimeError, match="abandoned"):
        execute(run, load_data(TINY.data), tmp_path, runtime=CPU, check=check)
    assert {name: (tmp_path / name).is_file() for name in written} == written
    assert not (tmp_path / "result.json").exists()


def test_metrics_are_whole_after_a_kill_between_the_last_checkpoint_and_them(tmp_path):
    data = load_data(TINY.data)
    result = execute(RUN, data, tmp_path, runtime=CPU)
    metrics = tmp_path / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole.splitlines(keepends=True)[0])
    (tmp_path / "result.json").unlink()
    again = execute(RUN, data, tmp_path, runtime=CPU)
    assert again.history == result.history
    assert metrics.read_text() == whole


def test_training_does_not_depend_on_the_global_random_state(executed, tmp_path):
    _, result = executed
    torch.manual_seed(99)
    again = execute(RUN, load_data(TINY.data), tmp_path, runtime=CPU)
    assert [r["train_loss"] for r in again.history] == [r["train_loss"] for r in result.history]


def test_held_out_images_are_evaluated_in_the_place_of_the_test_images(tmp_path):
    settings = DataSettings(limit_train=96, limit_test=40, validation=0.2)
    run = Run(replace(TINY, epochs=1, data=settings), "plain", 0)
    data = load_data(settings)
    result = execute(run, data, tmp_path, runtime=CPU)
    # One fifth of the digits is the test split, one fifth of the rest is held out: 0.2 * 1,438.
    assert result.data == {"label": "digits (scikit-learn)", "train": 96, "evaluated": 288, "split": "validation"}
    assert "test_accuracy" not in result.history[0]
    assert result.accuracy == result.history[0]["validation_accuracy"]
    assert round(result.accuracy * 288, 3) == round(result.accuracy * 288)


def test_the_size_of_streamed_images_can_be_set(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for split in ("train", "test"):
        for name in ("cat", "eagle"):
            (tmp_path / split / name).mkdir(parents=True)
            for number, size in enumerate([(8, 8), (10, 12)]):
                image.new("RGB", size).save(tmp_path / split / name / f"{number}.png")
    settings = DataSettings(name=f"folder:{tmp_path}")
    with pytest.raises(InputError, match="give image_size"):
        load_data(settings)
    assert load_data(replace(settings, image_size=6)).image_size == (6, 6)
