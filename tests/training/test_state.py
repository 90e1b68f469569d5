"""A checkpoint that can be read and is wrong is refused, and nothing of it is loaded."""

import copy
from dataclasses import replace

import pytest
import torch

from backpass.errors import InputError
from backpass.training.checkpoint import Checkpoints
from backpass.training.processes import build_accelerator
from backpass.training.recipe import OptimizerSettings, Run, Runtime
from backpass.training.trainer import Trainer

CPU = Runtime(device="cpu")


def remove(*path):
    def change(state):
        *parents, last = path
        for key in parents:
            state = state[key]
        del state[last]

    return change


def put(value, *path):
    def change(state):
        *parents, last = path
        for key in parents:
            state = state[key]
        state[last] = value

    return change


KERNEL = "fc.weight"
CHANGES = {
    "missing part": (
        remove("schedule"),
        r"the content of the checkpoint to have the keys .*'schedule', 'traces'\], got .*'scaler', 'traces'\]",
    ),
    "list for dictionary": (put([], "model"), "model of the checkpoint to be a dict, got list"),
    "missing weight": (remove("model", KERNEL), r"model of the checkpoint .* missing \['fc.weight'\] and unknown \[\]"),
    "unknown weight": (put(torch.ones(1), "model", "other"), r"missing \[\] and unknown \['other'\]"),
    "wrong shape": (
        put(torch.ones(2, 3), "model", KERNEL),
        r"model.fc.weight .* shape \(3, 64\) .*got .* shape \(2, 3\)",
    ),
    "wrong dtype": (put(torch.ones(3, 64).double(), "model", KERNEL), r"model.fc.weight .* got .*dtype torch.float64"),
    "text for weight": (put("x", "model", KERNEL), r"model.fc.weight of the checkpoint to be a tensor .*, got str"),
    "text for rate": (
        put("fast", "optimizer", "param_groups", 0, "lr"),
        "param_groups.0.lr .* to be a number, got str",
    ),
    "fewer parameters": (
        put([0], "optimizer", "param_groups", 0, "params"),
        "param_groups.0.params .* got a list of len",
    ),
    "no optimizer state": (remove("optimizer", "state"), r"optimizer of the checkpoint to have the keys .*'state'\]"),
    "wrong momentum": (
        put({"momentum_buffer": torch.ones(7)}, "optimizer", "state", 0),
        r"optimizer.momentum_buffer of .* in the checkpoint to have shape \(.*\), got \(7,\)",
    ),
    "wrong schedule": (
        put("x", "schedule", "last_epoch"),
        "schedule.last_epoch of the checkpoint to be a number, got str",
    ),
    "no position": (remove("schedule", "last_epoch"), r"schedule of the checkpoint .* missing \['last_epoch'\]"),
    "missing method": (put({}, "methods"), r"methods of the checkpoint to have the keys \['sgs'\], got \[\]"),
    "wrong scalings": (
        put({}, "methods", "sgs", "scalings"),
        r"methods.sgs of the checkpoint .* this model's scalings: missing \['conv1.weight'",
    ),
    "other precision": (
        put("bf16", "precision"),
        "expected runtime.precision=bf16, in which the checkpoint was trained, got no; resume in that precision",
    ),
    "wrong history": (
        put([{"epoch": 4}], "history"),
        "history of the checkpoint to hold a record for each epoch, at most 3",
    ),
    "text for history": (put("x", "history"), "history of the checkpoint to be a list, got str"),
}


@pytest.fixture
def trained(recipe, images):
    trainer = Trainer(Run(replace(recipe, epochs=3), "sgs"), images, runtime=CPU)
    trainer.history.append(trainer._epoch(0))
    return trainer


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_part_is_named_and_nothing_is_loaded(change, trained, images):
    alter, text = CHANGES[change]
    state = copy.deepcopy(trained.state_dict())
    alter(state)
    trainer = Trainer(trained.run, images, runtime=CPU)
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(InputError, match=text):
        trainer.load_state_dict(state)
    after = trainer.state_dict()
    assert after["history"] == []
    assert after["schedule"] == before["schedule"]
    assert after["optimizer"] == before["optimizer"]
    assert all(torch.equal(tensor, before["model"][name]) for name, tensor in after["model"].items())
    trainer.load_state_dict(trained.state_dict())
    assert len(trainer.history) == 1


def test_a_checkpoint_loads_where_another_version_of_torch_keeps_other_marks_of_a_schedule(trained, images):
    state = copy.deepcopy(trained.state_dict())
    del state["schedule"]["_get_lr_called_within_step"]
    state["schedule"]["verbose"] = False
    trainer = Trainer(trained.run, images, runtime=CPU)
    trainer.load_state_dict(state)
    assert trainer.state_dict()["schedule"] == trained.state_dict()["schedule"]


@pytest.mark.parametrize("content", [[1, 2], {"weights": {}}, torch.ones(2)], ids=["list", "dict", "tensor"])
def test_a_file_that_is_no_checkpoint_of_a_run_is_refused(content, recipe, images, tmp_path):
    Checkpoints(tmp_path).save(content)
    trainer = Trainer(Run(recipe), images, runtime=CPU, folder=tmp_path)
    with pytest.raises(InputError, match=r"the content of the checkpoint to have the keys .*remove the checkpoint"):
        trainer.resume()


def test_a_checkpoint_of_another_run_names_what_differs_alone(recipe, images):
    state = Trainer(Run(recipe, "sgs"), images, runtime=CPU).state_dict()
    other = replace(recipe, optimizer=OptimizerSettings(lr=0.5), epochs=4)
    with pytest.raises(InputError) as caught:
        Trainer(Run(other, "sgs", 1), images, runtime=CPU).load_state_dict(state)
    assert str(caught.value) == (
        "the checkpoint belongs to another run: recipe.epochs: expected 4, received 3; recipe.optimizer.lr: expected "
        "0.5, received 0.05; seed: expected 1, received 0; choose another folder or remove the checkpoint"
    )


def test_a_run_resumes_from_the_previous_checkpoint_bit_for_bit(recipe, images, tmp_path):
    run = Run(recipe, "sgs+pgt")
    whole = Trainer(run, images, runtime=CPU, folder=tmp_path)
    whole.fit()
    path = tmp_path / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    trainer = Trainer(run, images, runtime=CPU, folder=tmp_path)
    with pytest.warns(UserWarning, match="resumes from checkpoint.previous.pt"):
        assert trainer.resume()
    assert len(trainer.history) == 2
    trainer.fit()
    other = whole.model.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in trainer.model.state_dict().items())


def test_the_loss_scale_is_part_of_the_state(recipe, images, monkeypatch):
    def with_loss_scale(runtime):
        accelerator = build_accelerator(runtime)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        return accelerator

    monkeypatch.setattr("backpass.training.resumable_run.build_accelerator", with_loss_scale)
    first, second = (Trainer(Run(recipe), images, runtime=CPU) for _ in range(2))
    first.history.append(first._epoch(0))
    state = copy.deepcopy(first.state_dict())
    assert state["scaler"]["_growth_tracker"] == len(first.loaders.train)
    with pytest.raises(InputError, match=r"expected scaler\.scale of the checkpoint to be a number, got str"):
        second.load_state_dict({**state, "scaler": {**state["scaler"], "scale": "x"}})
    assert second.accelerator.scaler.state_dict()["_growth_tracker"] == 0
    second.load_state_dict(state)
    assert second.accelerator.scaler.state_dict() == state["scaler"]
    assert second._stepping is second.optimizer
