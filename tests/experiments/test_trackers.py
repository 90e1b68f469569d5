import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import sqlalchemy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from backpass.errors import MissingExtraError
from backpass.experiments import RECIPES, train
from backpass.experiments import trackers as trackers_module
from backpass.experiments.progress import Progress
from backpass.experiments.trackers import tracking
from backpass.training.processes import join
from backpass.training.recipe import DataSettings, Run, Runtime
from backpass.training.traces import Traces

RECIPE = replace(RECIPES["digits"], epochs=3, data=DataSettings(limit_train=64, limit_test=20))
RUN = Run(RECIPE, "sgs", 1)
RECORD = {"epoch": 1, "train_loss": 0.5}
TRACES = Traces(scalings={1: {"conv.weight": [[1.0, 2.0, 1.0]] * 3}})


class KilledError(Exception):
    pass


class Killing(Progress):
    def end_epoch(self, record):
        if record["epoch"] == 1:
            raise KilledError


@pytest.fixture(autouse=True)
def process():
    """Accelerate's trackers need its state, as every run has it."""
    join(Runtime(device="cpu"))


@pytest.fixture
def fake(monkeypatch):
    """Puts a module without content in the place of a tracker's; what is set on it is what the tracker calls."""

    def make(name, **content):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return make


def test_tensorboard_gets_every_epoch_once_and_the_scalings_as_images(tmp_path):
    runtime = Runtime(device="cpu", tracker="tensorboard")
    arguments = {"method": "sgs", "runtime": runtime}
    with pytest.raises(KilledError):
        train(RECIPE, tmp_path / "run", progress=Killing(), **arguments)
    record = train(RECIPE, tmp_path / "run", **arguments)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert set(record.history[0]) - {"epoch"} <= set(tags["scalars"])
    accuracy = [event.value for event in events.Scalars("test_accuracy")]
    assert [event.step for event in events.Scalars("test_accuracy")] == [0, 1, 2]
    assert accuracy == pytest.approx(record.by_epoch("accuracy"))
    images = [(event.step, event.width > 200) for event in events.Images("scalings")]
    assert images == [(epoch, True) for epoch in record.traces.scalings]


def test_a_tracker_changes_nothing_in_the_run(tmp_path):
    plain, tracked = (
        train(RECIPE, tmp_path / str(tracker), method="sgs", runtime=Runtime(device="cpu", tracker=tracker))
        for tracker in (None, "tensorboard")
    )
    assert plain.by_epoch("loss") == tracked.by_epoch("loss")
    assert plain.scalings == tracked.scalings
    assert not (tmp_path / "None" / "tensorboard").exists()


def test_wandb_runs_in_the_folder_of_the_run(fake, tmp_path):
    started, sent, ended = [], [], []
    run = SimpleNamespace(log=lambda values, step: sent.append((step, values)), finish=lambda: ended.append(True))
    config = SimpleNamespace(update=lambda values, **_: started.append(values))
    fake("wandb", init=lambda **arguments: started.append(arguments) or run, config=config, Image=lambda p: p.shape)
    with tracking("wandb", RUN, tmp_path / "a") as send:
        send(RECORD, TRACES)
    assert started[0] == {"project": "backpass", "dir": str(tmp_path / "a"), "name": "a"}
    assert (started[1]["recipe.sgs.k"], started[1]["method"]) == (5.0, "sgs")
    assert sent[0] == (1, {"train_loss": 0.5})
    step, images = sent[1]
    assert step == 1
    assert images["scalings"][0][2] == 3  # a colour image
    assert ended == [True]


@pytest.mark.parametrize("server", [None, "http://server"])
def test_mlflow_writes_into_the_folder_of_the_run_unless_there_is_a_server(server, fake, tmp_path, monkeypatch):
    calls = []

    def call(name):
        return lambda *arguments, **named: calls.append((name, arguments, named)) or []

    limits = SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
    names = ("set_tracking_uri", "search_experiments", "create_experiment", "start_run", "log_params", "log_metrics")
    functions = {name: call(name) for name in (*names, "log_figure", "end_run")}
    fake("mlflow", utils=SimpleNamespace(validation=limits), **functions)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    folder = tmp_path / "a?b%20c"
    with tracking("mlflow", RUN, folder) as send:
        send(RECORD, TRACES)
    made = {name: (arguments, named) for name, arguments, named in calls}
    assert ("set_tracking_uri" in made) == (server is None)
    if server is None:
        (address,) = made["set_tracking_uri"][0]
        assert sqlalchemy.make_url(address).database == str(folder / "mlflow.db")
    assert made["start_run"][1]["run_name"] == folder.name
    assert made["log_metrics"][0] == ({"train_loss": 0.5},)
    assert made["log_figure"][1]["artifact_file"] == "scalings-0001.png"
    assert calls[-1][0] == "end_run"


def test_an_epoch_without_a_refresh_sends_no_image(fake, tmp_path):
    sent = []
    run = SimpleNamespace(log=lambda values, step: sent.append(values), finish=lambda: None)
    fake("wandb", init=lambda **_: run, config=SimpleNamespace(update=lambda values, **_: None))
    with tracking("wandb", RUN, tmp_path) as send:
        send(RECORD | {"epoch": 2}, TRACES)
    assert sent == [{"train_loss": 0.5}]


def test_the_tracker_is_closed_after_an_error(fake, tmp_path):
    ended = []
    run = SimpleNamespace(finish=lambda: ended.append(True))
    fake("wandb", init=lambda **_: run, config=SimpleNamespace(update=lambda values, **_: None))
    with pytest.raises(KilledError), tracking("wandb", RUN, tmp_path):
        raise KilledError
    assert ended == [True]


def test_a_tracker_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(trackers_module, "find_spec", lambda name: None)
    with (
        pytest.raises(MissingExtraError, match=r"expected wandb to be installed .*: pip install wandb"),
        tracking("wandb", RUN, tmp_path),
    ):
        pass
