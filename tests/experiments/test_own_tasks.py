"""Runs of a user's own task, from the start to the record."""

import pytest

from backpass.experiments import read_record
from backpass.experiments.run import execute, load_data
from backpass.training import DataSettings, Recipe, Run, Runtime, SgsSettings, import_path
from training.own import Tokens, token_net, tokens

CPU = Runtime(device="cpu", workers=0)
TOKENS = Recipe(
    task=import_path(Tokens),
    model=import_path(token_net),
    data=DataSettings(name=import_path(tokens)),
    epochs=1,
    batch_size=4,
    sgs=SgsSettings(warmup=0),
)


def test_a_run_on_integers_leaves_a_record(tmp_path):
    record = execute(Run(TOKENS, "sgs"), load_data(TOKENS.data), tmp_path, runtime=CPU)
    assert read_record(tmp_path / "result.json") == record
    assert record.model.macs == 3 * 4 * 4 * 6 + 4 * 2


def test_a_model_whose_cost_cannot_be_counted_is_not_trained(tmp_path, monkeypatch):
    def fail(model, example):
        raise ValueError("no cost")

    monkeypatch.setattr("backpass.experiments.run.count_macs", fail)
    with pytest.raises(ValueError, match="no cost"):
        execute(Run(TOKENS), load_data(TOKENS.data), tmp_path, runtime=CPU)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
