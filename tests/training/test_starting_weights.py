"""Trained weights that a run starts from are read once, at its start."""

import warnings
from dataclasses import replace

import pytest
import torch

from backpass.errors import BackpassWarning, InputError
from backpass.models import create_model
from backpass.training.recipe import Run, Runtime, WeightSettings
from backpass.training.trainer import Trainer

CPU = Runtime(device="cpu")


class StoppedError(Exception):
    pass


def stop(record):
    raise StoppedError


@pytest.fixture
def source(tmp_path):
    weights = create_model("digits_net", num_classes=5).state_dict()  # the head does not fit
    torch.save(weights, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.fixture
def run(recipe, source):
    return Run(replace(recipe, epochs=2, weights=WeightSettings(source=str(source))), "sgs+pgt")


def trainer_of(run, images, folder, **hooks):
    return Trainer(run, images, runtime=CPU, folder=folder, **hooks)


def stopped(run, images, folder):
    with pytest.warns(BackpassWarning, match="weights.pt") as found:
        trainer = trainer_of(run, images, folder, on_epoch=stop)
    assert len(found) == 1
    with pytest.raises(StoppedError):
        trainer.fit()


def test_a_run_resumes_after_the_source_of_its_weights_was_removed(run, images, source, tmp_path):
    folders = tmp_path / "whole", tmp_path / "resumed"
    with pytest.warns(BackpassWarning, match="weights.pt"):
        whole = trainer_of(run, images, folders[0])
    whole.fit()
    stopped(run, images, folders[1])
    source.unlink()
    with warnings.catch_warnings(action="error"):
        resumed = trainer_of(run, images, folders[1])
        assert resumed.resume()
    resumed.fit()
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())


def test_a_run_that_is_not_resumed_starts_from_its_weights_again(run, images, source, tmp_path):
    stopped(run, images, tmp_path / "run")
    again = trainer_of(run, images, tmp_path / "run")
    with pytest.warns(BackpassWarning, match="weights.pt"):
        again.fit()
    with pytest.warns(BackpassWarning, match="weights.pt"):
        fresh = trainer_of(run, images, None)
    fresh.fit()
    expected = fresh.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.model.state_dict().items())
    source.unlink()
    with pytest.raises(InputError, match=r"weights\.pt"):
        trainer_of(run, images, tmp_path / "run").fit()
