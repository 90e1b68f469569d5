import json

import pytest

from backpass.__main__ import main

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
