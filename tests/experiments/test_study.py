import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from backpass.errors import InputError
from backpass.experiments import study
from backpass.experiments.recipes import RECIPES, get_recipe
from backpass.experiments.report import write_report
from backpass.models import create_model
from backpass.training.recipe import DataSettings, Run, Runtime

CPU = Runtime(device="cpu")
TINY = replace(RECIPES["digits"], epochs=2, data=DataSettings(limit_train=96, limit_test=40))


class Log(study.Progress):
    def __init__(self):
        self.events = []

    def start_study(self, runs):
        self.events.append(runs)

    def end_epoch(self, record):
        self.events.append("epoch")

    def end_run(self, result):
        self.events.append((result.method, result.seed))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, study.compare(TINY, ["plain", "sgs+pgt"], [0, 1], folder, runtime=CPU)


def test_a_run_folder_holds_everything(compared):
    folder, results = compared
    run = folder / "sgs+pgt-seed1"
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "model.safetensors",
        "result.json",
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == results[-1].history
    assert results[-1].model["parameters"] == sum(p.numel() for p in create_model("digits_net").parameters())
    assert results[-1].data == {"label": "digits (scikit-learn)", "train": 96, "test": 40}
    create_model("digits_net", num_classes=10).load_state_dict(load_file(run / "model.safetensors"), strict=True)
    assert set(results[-1].scalings) == {n for n, p in create_model("digits_net").named_parameters() if p.ndim == 4}


def test_methods_come_in_turn_within_a_seed(compared):
    _, results = compared
    assert [(r.method, r.seed) for r in results] == [("plain", 0), ("sgs+pgt", 0), ("plain", 1), ("sgs+pgt", 1)]


def test_a_finished_study_is_read_and_not_run_again(compared):
    folder, results = compared
    log = Log()
    assert study.compare(TINY, ["plain", "sgs+pgt"], [0, 1], folder, runtime=CPU, progress=log) == results
    assert log.events == [4, ("plain", 0), ("sgs+pgt", 0), ("plain", 1), ("sgs+pgt", 1)]


def test_a_folder_of_another_run_is_refused(compared):
    folder, _ = compared
    data = study.load_data(TINY.data)
    with pytest.raises(InputError, match="holds the result of another run"):
        study.execute(Run(replace(TINY, epochs=3), "plain", 0), data, folder / "plain-seed0", runtime=CPU)


def test_an_interrupted_run_goes_on_from_its_checkpoint(compared, tmp_path):
    _, results = compared
    data = study.load_data(TINY.data)

    class Stop(Log):
        def end_epoch(self, record):
            raise KeyboardInterrupt

    run = Run(TINY, "sgs+pgt", 1)
    with pytest.raises(KeyboardInterrupt):
        study.execute(run, data, tmp_path, runtime=CPU, progress=Stop())
    log = Log()
    result = study.execute(run, data, tmp_path, runtime=CPU, progress=log)
    assert log.events == ["epoch", ("sgs+pgt", 1)]
    assert [r["train_loss"] for r in result.history] == [r["train_loss"] for r in results[-1].history]
    assert result.scalings == results[-1].scalings


def test_the_report_shows_every_method_and_layer(compared, tmp_path):
    _, results = compared
    write_report(results, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for result in results:
        assert f"{100 * result.accuracy:.2f}" in page
    assert page.count("<svg") == 2
    assert "Scalings: sgs+pgt, seed 0" in page
    assert not re.search(r'(src|href)="http', page)  # self-contained


def test_nothing_to_compare():
    with pytest.raises(InputError, match=r"at least one method and one seed, got \[\] and \[0\]"):
        study.compare(TINY, [], [0], None, runtime=CPU)  # type: ignore[arg-type]


def test_recipes_by_name():
    assert get_recipe("cifar-200").optimizer.weight_decay == 5e-4
    with pytest.raises(InputError, match="unknown recipe 'x'; expected one of digits, cifar-200"):
        get_recipe("x")


def test_training_does_not_depend_on_the_global_random_state(compared, tmp_path):
    _, results = compared
    torch.manual_seed(99)
    again = study.execute(Run(TINY, "plain", 0), study.load_data(TINY.data), tmp_path, runtime=CPU)
    assert [r["train_loss"] for r in again.history] == [r["train_loss"] for r in results[0].history]
