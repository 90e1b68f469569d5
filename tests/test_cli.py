import json
import shutil
import signal
import subprocess
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
from backpass.experiments.queue import Queue

from backpass.__main__ import main
from backpass.experiments import worker as workers
from backpass.experiments.recipes import RECIPES, TABLES, Row, Table

SMALL = ["--epochs", "1", "--data.limit-train", "96", "--data.limit-test", "30", "--runtime.device", "cpu"]


def test_compare_prints_a_table_and_writes_a_report(tmp_path, capsys):
    out = tmp_path / "c"
    assert main(["compare", *SMALL, "--methods", "plain", "sgs", "--seeds", "0", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "digits_net on digits" in printed
    assert "plain" in printed
    assert "sgs" in printed
    assert str(out / "report.html") in printed
    assert (out / "report.html").stat().st_size > 10_000


def test_compare_as_json(tmp_path, capsys):
    out = tmp_path / "c"
    assert main(["compare", *SMALL, "--methods", "plain", "pgt", "--seeds", "0", "--out", str(out), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [(row["method"], row["n"], row["std"]) for row in content["rows"]] == [("plain", 1, None), ("pgt", 1, None)]


def test_search_judges_on_held_out_images(tmp_path, capsys):
    out = tmp_path / "s"
    arguments = ["search", "sgs.k", *SMALL, "--values", "2", "7", "--seeds", "0", "--out", str(out), "--json"]
    assert main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in content["rows"]] == ["plain", "sgs.k = 2", "sgs.k = 7"]
    assert content["notes"] == ["accuracy on 20 % of the training images, held out"]
    history = json.loads((out / "plain-seed0" / "result.json").read_text())["history"]
    assert "validation_accuracy" in history[0]
    assert main(arguments) == 0  # goes on where it was, which is the end
    assert json.loads(capsys.readouterr().out) == content


@pytest.fixture
def tiny_table(monkeypatch):
    rows = (
        Row("tiny", "A", RECIPES["digits"], "sgs", 91.5, 90.25, "by hand", peers=(("dbb", 91.0),)),
        Row("tiny", "B", replace(RECIPES["digits"], batch_size=16), "pgt", None, 90.25, "by hand"),
    )
    monkeypatch.setitem(TABLES, "tiny", Table("tiny", "A tiny table", rows, "one run"))


TINY = ["--epochs", "1", "--limit-train", "96", "--limit-test", "30", "--runtime.device", "cpu"]


def test_reproduce_sets_the_paper_beside_the_results(tiny_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "tiny", "--seeds", "1", "--rows", "A", *TINY, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [(row["label"], row["method"], row["n"], row["paper"]) for row in content["rows"]] == [
        ("A", "plain", 1, 0.9025),
        ("A", "sgs", 1, 0.915),
        ("A", "dbb", 1, 0.91),
        ("B", "plain", 0, 0.9025),
        ("B", "pgt", 0, None),
    ]
    assert content["notes"][1] == "not as in the paper: epochs 1"
    assert (tmp_path / "runs" / "tiny" / "table.md").read_text().count("not run") == 2


def test_report_makes_the_same_table_from_files(tiny_table, tmp_path, capsys):
    out = tmp_path / "t"
    assert main(["reproduce", "tiny", "--seeds", "2", *TINY, "--out", str(out)]) == 0
    tables = {suffix: (out / f"table.{suffix}").read_text() for suffix in ("md", "tex", "csv", "json")}
    for suffix in tables:
        (out / f"table.{suffix}").unlink()
    (out / "study.db").unlink()
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    assert "A tiny table" in capsys.readouterr().out
    assert {suffix: (out / f"table.{suffix}").read_text() for suffix in tables} == tables
    shutil.rmtree(out / "A-sgs-seed0")
    shutil.rmtree(out / "A-sgs-seed1")
    assert main(["report", str(out)]) == 0
    assert "| A | sgs | 0 | not run |" in (out / "table.md").read_text()


def test_worker_ends_a_study_that_another_began(tmp_path, capsys):
    out = tmp_path / "c"
    compare = ["compare", *SMALL, "--methods", "plain", "--out", str(out), "--storage", f"journal:{tmp_path / 'cells'}"]
    assert main([*compare, "--seeds", "0", "--json"]) == 0
    capsys.readouterr()
    assert main(["worker", "--study", f"journal:{tmp_path / 'cells'}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(out), "cells": 1, "failures": {}}


def test_failed_cells_are_told_after_the_table(tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "c")
    compare = ["compare", *SMALL, "--methods", "plain", "pgt", "--seeds", "0", "--pgt.alpha", "-1", "--out", out]
    assert main(compare) == 2
    printed = capsys.readouterr()
    assert "not run" in printed.out
    assert "backpass: 1 of 2 cells failed (pgt-seed0: " in printed.err
    assert main(["worker", "--study", out]) == 2
    assert "backpass: 1 of 2 cells failed (pgt-seed0: " in capsys.readouterr().err
    ended = SimpleNamespace(wait=lambda: 2, terminate=lambda: None)
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: ended)
    assert main(["worker", "--study", out, "--processes", "2"]) == 2
    printed = capsys.readouterr()
    assert "2 cells have ended, 1 failed" in printed.out
    assert "backpass: 1 of 2 cells failed (pgt-seed0: " in printed.err


def test_sigterm_in_a_cell_of_a_study_puts_it_back(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "execute", lambda *arguments, **options: signal.raise_signal(signal.SIGTERM))
    out = str(tmp_path / "c")
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *SMALL, "--methods", "plain", "--seeds", "0", "--out", out, "--processes", "1"])
    assert stopped.value.code == 143
    with closing(Queue.open(out)) as queue:
        assert [state.state for state in queue.states()] == ["waiting"]


def test_train_makes_a_run_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--method", "sgs+pgt", "--seed", "5"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "config.json").read_text())["seed"] == 5
    assert folder.name in capsys.readouterr().out


def test_recipe_decides_the_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--recipe", "cifar-600", "--help"])
    text = capsys.readouterr().out
    assert "vgg16_small" in text
    assert "600" in text


def test_list(capsys):
    assert main(["list", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)
    assert "vgg11_small" in names["models"]
    assert "folder:PATH" in names["data sets"]
    assert "sgs+pgt" in names["methods"]
    assert "digits" in names["recipes"]
    assert "sgs-table-4" in names["tables"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["reproduce", "sgs-table4"], "unknown table 'sgs-table4'; did you mean sgs-table-4"),
        (["reproduce", "sgs-table-4", "--rows", "VGG"], "no row of sgs-table-4 is called 'VGG'"),
        (["reproduce", "sgs-table-4", "--seeds", "0"], "expected at least one seed, got none"),
        (["search", "sgs.q", "--values", "1"], "unknown setting 'q' of SgsSettings; expected one of k, "),
        (["search", "optimizer.lr"], "expected values to try for 'optimizer.lr'"),
        (["worker", "--study", "no/such/study"], "expected the cells of a study at no/such/study/study.db, found none"),
        (["report", "no/such/study"], "expected run folders with a result.json below no/such/study, found none"),
    ],
)
def test_what_a_study_cannot_work_with(arguments, text, capsys):
    assert main(arguments) == 2
    assert f"backpass: {text}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["compare", "--methods", "plain", "foo"], "got 'foo': unknown 'foo'"),
        (["train", "--recipe", "nope"], "unknown recipe 'nope'"),
        (["train", "--model", "nope"], "unknown model 'nope'"),
        (["train", "--data.name", "nope"], "unknown data set 'nope'"),
        (["train", "--data.name", "folder:/no/such/place"], "/no/such/place"),
        (["train", "--sgs.k", "-1", "--method", "sgs"], "expected k to be a finite number > 0"),
        (["train", "--pgt.alpha", "0", "--method", "pgt"], "alpha"),
    ],
)
def test_errors_are_one_line_and_status_2(arguments, text, capsys, tmp_path):
    assert main([*arguments, "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("backpass: ")
    assert text in error
