import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from backpass.errors import InputError, StateError
from backpass.experiments import RECIPES, compare_study, read_record, read_records, run_study
from backpass.experiments.progress import Progress
from backpass.experiments.record import EvaluatedData, TrainedModel
from backpass.experiments.run import execute, load_data
from backpass.experiments.study import own_records
from backpass.models import create_model
from backpass.training import lock
from backpass.training.recipe import DataSettings, Run, Runtime

CPU = Runtime(device="cpu")
TINY = replace(RECIPES["digits"], epochs=2, data=DataSettings(limit_train=96, limit_test=40))
RUN = Run(TINY, "sgs+pgt", 1)


class Log(Progress):
    def __init__(self):
        self.events = []

    def end_epoch(self, record):
        self.events.append("epoch")

    def end_run(self, record):
        self.events.append((record.method, record.seed))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, execute(RUN, load_data(TINY.data), folder, runtime=CPU)


def test_a_run_folder_holds_everything(executed):
    folder, record = executed
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "checkpoint.previous.pt",
        ".lock",
        "model.safetensors",
        "result.json",
    }
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == record.history
    assert record.model == TrainedModel("digits_net", 56554, 1788544, 56554, 1788544)
    assert record.data == EvaluatedData("digits (scikit-learn)", train=96, evaluated=40, split="test")
    assert record.cost.train_seconds == pytest.approx(sum(r["train_seconds"] for r in record.history))
    assert (record.cost.gpu_hours, record.cost.peak_memory) == (None, None)
    create_model("digits_net", num_classes=10).load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    assert set(record.scalings) == {n for n, p in create_model("digits_net").named_parameters() if p.ndim == 4}


def test_a_finished_run_is_read_and_not_run_again(executed):
    folder, record = executed
    log = Log()
    assert execute(RUN, load_data(TINY.data), folder, runtime=CPU, progress=log) == record
    assert log.events == [("sgs+pgt", 1)]


def test_a_run_that_was_trained_by_itself_belongs_to_the_study_that_takes_it(executed, tmp_path):
    folder, record = executed
    study = compare_study(TINY, ("sgs+pgt",), (1,))
    (run,) = study.runs()
    shutil.copytree(folder, tmp_path / run.folder)
    result = run_study(study, tmp_path, runtime=CPU)
    assert result.records == [replace(record, entry=run.entry)] == own_records(study, read_records(tmp_path))
    # A command that names no entry leaves it.
    data, own = load_data(TINY.data), tmp_path / run.folder
    assert execute(RUN, data, own, runtime=CPU).entry == run.entry
    # That of another study takes a copy.
    assert execute(RUN, data, own, runtime=CPU, entry="other").entry == "other"
    assert read_record(own / "result.json").entry == run.entry


def test_a_folder_of_another_run_is_refused(executed):
    folder, _ = executed
    before = contents(folder)
    expected = (
        "belongs to another run: method: expected 'plain', received 'sgs\\+pgt'; seed: expected 0, received 1; "
        "choose another folder or remove this one$"
    )
    with pytest.raises(InputError, match=expected):
        execute(Run(TINY, "plain", 0), load_data(TINY.data), folder, runtime=CPU)
    assert contents(folder) == before


@pytest.mark.parametrize("kept", ["config.json", "checkpoint.pt"])
def test_a_refused_run_changes_nothing_in_the_folder_of_an_unfinished_one(kept, executed, tmp_path):
    folder, _ = executed
    for name in (kept, "environment.json"):
        shutil.copy(folder / name, tmp_path / name)
    (tmp_path / ".lock").touch()
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"another run: recipe.epochs: expected 3, received 2; choose another folder"):
        execute(replace(RUN, recipe=replace(TINY, epochs=3)), load_data(TINY.data), tmp_path, runtime=CPU)
    assert contents(tmp_path) == before


def test_a_setting_that_an_older_run_lacks_has_its_default(executed, tmp_path):
    folder, record = executed
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "result.json").read_text())
    del content["run"]["recipe"]["model_args"]
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert execute(RUN, load_data(TINY.data), tmp_path, runtime=CPU).history == record.history


def resumed(executed, folder, alter):
    """Return the record of the run that ends again after its environment was altered."""
    shutil.copytree(executed[0], folder, dirs_exist_ok=True)
    (folder / "result.json").unlink()
    content = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(alter(content)))
    return execute(RUN, load_data(TINY.data), folder, runtime=CPU)


def test_a_run_that_is_resumed_on_another_machine_names_both(executed, tmp_path):
    record = resumed(executed, tmp_path, lambda content: content | {"cpu": "another cpu", "accelerator": "a gpu"})
    here = executed[1].environment
    assert (here.earlier, here.hardware) == ((), here.cpu)
    assert record.environment == replace(here, earlier=("another cpu and a gpu",))
    assert record.hardware == f"{here.cpu}, earlier another cpu and a gpu"
    assert json.loads((tmp_path / "environment.json").read_text())["earlier"] == ["another cpu and a gpu"]


def test_a_run_that_is_resumed_on_the_same_machine_names_it_once(executed, tmp_path):
    assert resumed(executed, tmp_path, lambda content: content).environment == executed[1].environment


def test_an_environment_that_cannot_be_read_is_named_and_kept(executed, tmp_path):
    with pytest.raises(InputError, match=r"environment.json: expected a Environment .* remove or mend it"):
        resumed(executed, tmp_path, lambda content: [])
    assert json.loads((tmp_path / "environment.json").read_text()) == []


@pytest.mark.parametrize(
    "request_too_much", [lambda: torch.empty(10**15), lambda: bytearray(10**18)], ids=["torch", "python"]
)
def test_a_run_that_does_not_fit_into_memory_says_what_to_lower(request_too_much, tmp_path):
    class Filling(Progress):
        def step(self, epoch, step, steps):
            request_too_much()

    with pytest.raises(
        StateError, match=r"fit into memory, got .*; lower batch_size \(.* or raise micro_batches \(1\)"
    ):
        execute(RUN, load_data(TINY.data), tmp_path, runtime=CPU, progress=Filling())


def test_two_trainings_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 0.0)
    data = load_data(TINY.data)
    other = Run(TINY, "plain", 5)
    refused = []

    class Second(Progress):
        def step(self, epoch, step, steps):
            if not refused:
                for run in (RUN, other):
                    before = contents(tmp_path)
                    with pytest.raises(StateError, match="free, got one in which another process trains; wait for it"):
                        execute(run, data, tmp_path, runtime=CPU)
                    refused.append(contents(tmp_path) == before)

    record = execute(RUN, data, tmp_path, runtime=CPU, progress=Second())
    assert refused == [True, True]
    assert read_record(tmp_path / "result.json") == record


def test_a_process_that_loses_the_folder_stops_before_it_writes(tmp_path):
    """As a suspended worker does whose run another worker has taken over."""
    data = load_data(TINY.data)
    records = []

    class TakenOver(Progress):
        def step(self, epoch, step, steps):
            if not records:
                records.append(execute(RUN, data, tmp_path, runtime=CPU, check=lambda: None))

    with pytest.raises(StateError, match="got another one that has taken the run over; this one stops"):
        execute(RUN, data, tmp_path, runtime=CPU, progress=TakenOver())
    assert read_record(tmp_path / "result.json") == records[0]


def train_until_killed(folder):
    class Kill(Progress):
        def step(self, epoch, step, steps):
            os.kill(os.getpid(), signal.SIGKILL)

    execute(RUN, load_data(TINY.data), folder, runtime=CPU, progress=Kill())


def test_a_killed_process_leaves_neither_a_lock_nor_temporary_files(processes, tmp_path):
    process = processes.Process(target=train_until_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = [tmp_path / f".{name}.{'0' * 32}" for name in ("checkpoint.pt", "metrics.jsonl")]
    for path in left:
        path.write_bytes(b"half")
    own = tmp_path / ".notes"
    own.touch()
    execute(RUN, load_data(TINY.data), tmp_path, runtime=CPU)
    assert not any(path.exists() for path in left)
    assert own.exists()


def test_all_files_have_the_mode_of_new_files(executed, tmp_path):
    folder, _ = executed
    (tmp_path / "new").touch()
    modes = {path.name: path.stat().st_mode for path in folder.iterdir() if path.name != ".lock"}
    assert set(modes.values()) == {(tmp_path / "new").stat().st_mode}


def test_an_interrupted_run_resumes_from_its_checkpoint(executed, tmp_path):
    _, record = executed
    data = load_data(TINY.data)

    class Stop(Log):
        def end_epoch(self, record):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(RUN, data, tmp_path, runtime=CPU, progress=Stop())
    log = Log()
    again = execute(RUN, data, tmp_path, runtime=CPU, progress=log)
    assert log.events == ["epoch", ("sgs+pgt", 1)]
    assert [r["train_loss"] for r in again.history] == [r["train_loss"] for r in record.history]
    assert again.scalings == record.scalings


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
    record = execute(RUN, data, tmp_path, runtime=CPU)
    metrics = tmp_path / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole.splitlines(keepends=True)[0])
    (tmp_path / "result.json").unlink()
    again = execute(RUN, data, tmp_path, runtime=CPU)
    assert again.history == record.history
    assert metrics.read_text() == whole


def test_training_does_not_depend_on_the_global_random_state(executed, tmp_path):
    _, record = executed
    torch.manual_seed(99)
    again = execute(RUN, load_data(TINY.data), tmp_path, runtime=CPU)
    assert [r["train_loss"] for r in again.history] == [r["train_loss"] for r in record.history]


def test_held_out_images_are_evaluated_instead_of_the_test_images(tmp_path):
    settings = DataSettings(limit_train=96, limit_test=40, validation=0.2)
    run = Run(replace(TINY, epochs=1, data=settings), "plain", 0)
    data = load_data(settings)
    record = execute(run, data, tmp_path, runtime=CPU)
    # One fifth of the digits is the test split, one fifth of the rest is held out: 0.2 * 1,438.
    assert record.data == EvaluatedData("digits (scikit-learn)", train=96, evaluated=288, split="validation")
    assert "test_accuracy" not in record.history[0]
    assert record.score == record.history[0]["validation_accuracy"]
    assert round(record.score * 288, 3) == round(record.score * 288)


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
