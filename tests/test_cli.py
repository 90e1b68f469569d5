import json
import re
import shutil
import signal
from contextlib import closing
from dataclasses import replace

import pytest

from backpass.__main__ import main
from backpass.cli.output import new_name
from backpass.experiments import RECIPES, Entry, Published, Table
from backpass.experiments.scheduling import worker as workers
from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.tables import TABLES
from backpass.training import SgsSettings
from training.folders import write_folder

SMALL = ["--epochs", "1", "--data.limit-train", "96", "--data.limit-test", "30", "--runtime.device", "cpu"]
SMALL += ["--sgs.warmup", "0"]


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
    assert [(e["method"], e["n"], e["std"]) for e in content["entries"]] == [
        ("plain", 1, None),
        ("pgt", 1, None),
    ]


def test_compare_tunes_first_and_its_report_shows_what_was_tried(tmp_path, capsys):
    out = tmp_path / "t"
    tune = ["--tune", "lr=0.01,0.02,0.05", "--tune", "weight_decay=0,5e-4", "--tuning.seeds", "7"]
    arguments = ["compare", *SMALL, "--methods", "plain", "pgt", "--seeds", "0", *tune, "--out", str(out), "--json"]
    assert main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    assert [(e["label"], e["n"]) for e in content["entries"]] == [("plain", 1), ("pgt", 1)]
    assert [note.partition(":")[0] for note in content["notes"]] == ["plain", "pgt"]
    assert all("the best of 6 points" in note for note in content["notes"])
    page = (out / "report.html").read_text()
    assert page.count("<h3>") == 2
    assert page.count(">chosen<") == 2
    assert main(["report", str(out), "--json"]) == 0  # made again from the files
    assert json.loads(capsys.readouterr().out) == content
    assert (out / "report.html").read_text() == page
    (out / "tuning.json").unlink()  # as between the stages
    for name in ("plain-seed0", "pgt-seed0"):
        shutil.rmtree(out / name)
    assert main(["report", str(out), "--json"]) == 0
    assert [entry["n"] for entry in json.loads(capsys.readouterr().out)["entries"]] == [0, 0]
    page = (out / "report.html").read_text()
    assert "The tuning stage has not ended" in page
    assert page.count(">chosen<") == 0


def test_tuning_that_cannot_be_is_refused_before_anything_runs(tmp_path, capsys):
    out = tmp_path / "t"
    assert main(["compare", *SMALL, "--tune", "lr=0.1,0.2", "--tune", "k=3,5", "--out", str(out)]) == 2
    assert "expected every entry to try the same number of points, got plain: 2, sgs: 4" in capsys.readouterr().err
    assert main(["compare", *SMALL, "--tune", "speed=1,2", "--out", str(out)]) == 2
    assert "unknown setting 'speed'" in capsys.readouterr().err
    assert not out.exists()


def test_power(capsys):
    assert main(["power", "--spread", "0.15", "--difference", "0.2", "--level", "0.01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seeds"] == 21
    assert main(["power", "--spread", "0.15", "--seeds", "21", "--level", "0.01"]) == 0
    assert "21 seeds of each method detect a difference of 0.19" in capsys.readouterr().out
    assert main(["power", "--spread", "0.15"]) == 2
    assert "expected either --difference or --seeds" in capsys.readouterr().err


def test_search_judges_on_held_out_images(tmp_path, capsys):
    out = tmp_path / "s"
    arguments = ["search", "sgs.k", *SMALL, "--values", "2", "7", "--seeds", "0", "--out", str(out), "--json"]
    assert main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in content["entries"]] == ["plain", "sgs, sgs.k = 2", "sgs, sgs.k = 7"]
    assert content["notes"] == ["judged on 20 % of the training images, held out"]
    history = json.loads((out / "plain-seed0" / "result.json").read_text())["history"]
    assert "validation_accuracy" in history[0]
    assert main(arguments) == 0  # resumes at the end
    assert json.loads(capsys.readouterr().out) == content


@pytest.fixture
def tiny_table(monkeypatch):
    recipe = replace(RECIPES["digits"], sgs=SgsSettings(warmup=0))
    entries = (
        Entry("A-plain", "A", "plain", recipe, published=Published(90.25, 0.1)),
        Entry("A-sgs", "A", "sgs", recipe, "A-plain", published=Published(91.5)),
        Entry("A-dbb", "A", "dbb", recipe, "A-plain", published=Published(91.0, cost=2.5)),
        Entry("A-copied", "A, copied", "dbb", None, "A-plain", published=Published(91.25, copied=True)),
        Entry("B-plain", "B", "plain", replace(recipe, batch_size=16)),
    )
    monkeypatch.setitem(TABLES, "tiny", Table("tiny", "A tiny table", entries, 1, "one run", cost_unit="GPU hours"))


TINY = ["--epochs", "1", "--limit-train", "96", "--limit-test", "30", "--runtime.device", "cpu"]


def test_reproduce_shows_the_published_numbers_next_to_the_results(tiny_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "tiny", "--entries", "A", *TINY, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [(e["label"], e["method"], e["n"], (e["published"] or {}).get("value")) for e in content["entries"]] == [
        ("A", "plain", 1, 90.25),
        ("A", "sgs", 1, 91.5),
        ("A", "dbb", 1, 91.0),
        ("A, copied", "dbb", 0, 91.25),
        ("B", "plain", 0, None),
    ]
    assert content["notes"][1] == "not as in the paper: epochs 1"
    assert "- not run: A, copied (dbb); B (plain)" in (tmp_path / "runs" / "tiny" / "table.md").read_text()


def test_a_dry_run_prints_what_would_run_and_runs_nothing(tiny_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "tiny", "--seeds", "4", "--entries", "A*", "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "A tiny table (tiny): 12 runs" in printed
    assert "A dbb 4 91 2.5" in printed
    assert "A, copied dbb 0 91.25 *" in printed
    assert "GPU hours" in printed
    assert main(["reproduce", "tiny", "--dry-run", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [(entry["key"], entry["runs"]) for entry in content["entries"]] == [
        ("A-plain", 1),
        ("A-sgs", 1),
        ("A-dbb", 1),
        ("A-copied", 0),
        ("B-plain", 1),
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_table_in_a_pipe_is_as_wide_as_its_texts(tiny_table, monkeypatch, capsys):
    label = "an entry with a label of many words, " * 4
    table = TABLES["tiny"]
    entry = replace(table.entries[0], label=label, published=Published(90.123456, 0.123456))
    monkeypatch.setitem(TABLES, "tiny", replace(table, entries=(entry, *table.entries[1:])))
    assert main(["reproduce", "tiny", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if label.strip() in line]
    assert str(entry.published) in line


@pytest.mark.parametrize("name", list(TABLES))
def test_a_dry_run_of_every_table(name, capsys):
    assert main(["reproduce", name, "--dry-run"]) == 0
    printed = "".join(capsys.readouterr().out.split())
    table = TABLES[name]
    numbers = {str(entry.published).replace(" ", "") for entry in table.entries if entry.published}
    assert f"({name}):" in printed
    assert numbers == {number for number in numbers if number.removesuffix("*") in printed}


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
    assert "- not run: A (sgs)" in (out / "table.md").read_text()


def test_worker_ends_a_study_that_another_began(tmp_path, capsys):
    out = tmp_path / "c"
    compare = ["compare", *SMALL, "--methods", "plain", "--out", str(out), "--storage", f"journal:{tmp_path / 'runs'}"]
    assert main([*compare, "--seeds", "0", "--json"]) == 0
    capsys.readouterr()
    assert main(["worker", "--study", f"journal:{tmp_path / 'runs'}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(out), "runs": 1, "failures": {}}


def test_failed_runs_are_named_after_the_table(tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "c")
    compare = ["compare", *SMALL, "--methods", "plain", "agc", "--seeds", "0", "--agc.head", "nope", "--out", out]
    assert main(compare) == 2
    printed = capsys.readouterr()
    assert "not run" in printed.out
    assert "backpass: 1 of 2 runs failed (agc-seed0: " in printed.err
    assert printed.err.endswith("; start the same command again to try them again\n")
    assert main(["worker", "--study", out]) == 2
    error = capsys.readouterr().err
    assert "backpass: 1 of 2 runs failed (agc-seed0: " in error
    assert error.endswith("; start the command that began the study again: it tries them again, a worker does not\n")
    (tmp_path / "c" / "study.json").unlink()  # as for a worker with a folder of its own: every run of the queue counts
    assert main(["worker", "--study", out]) == 2
    assert "backpass: 1 of 2 runs failed (agc-seed0: " in capsys.readouterr().err


def test_sigterm_in_a_run_of_a_study_puts_it_back(tmp_path, monkeypatch):
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


def test_commands_that_start_at_once_make_folders_of_their_own():
    assert len({new_name("train") for _ in range(3)}) == 3


def test_recipe_decides_the_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--recipe", "cifar-600", "--help"])
    text = capsys.readouterr().out
    assert "vgg16_small" in text
    assert "600" in text


def test_the_last_recipe_decides_the_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--recipe=digits", "--recipe", "cifar-600", "--help"])
    text = capsys.readouterr().out
    assert "vgg16_small" in text


def test_a_recipe_option_needs_a_value(capsys):
    try:
        status = main(["train", "--recipe", "--epochs", "2"])
    except SystemExit as ending:
        status = ending.code
    assert status == 2
    # Older versions of tyro take the option for the value.
    assert re.search("Missing value for argument '--recipe'|unknown recipe '--epochs'", capsys.readouterr().err)


def test_list(capsys):
    assert main(["list", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)
    assert "vgg11_small" in names["models"]
    assert "folder:PATH" in names["data sets"]
    assert "sgs+pgt" in names["methods"]
    assert "digits" in names["recipes"]
    assert "kernel-magnitude" in names["figures"]
    assert "sgs-table-4" in names["tables"]


@pytest.mark.parametrize(
    ("name", "runs"), [("sgs-table-5", 510), ("sgs-table-3", 69), ("sgs-k", 24), ("sgs-table-1", 40), ("tiny", 4)]
)
def test_list_counts_the_runs_that_a_dry_run_counts(name, runs, tiny_table, capsys):
    assert main(["list"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {name} ")]
    assert main(["reproduce", name, "--dry-run"]) == 0
    (planned,) = re.findall(rf"\({name}\):(\d+)runs", "".join(capsys.readouterr().out.split()))
    assert f" {planned} runs, " in line
    assert int(planned) == runs


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["reproduce", "sgs-table4"], "unknown table 'sgs-table4'; did you mean sgs-table-4"),
        (["reproduce", "sgs-table-4", "--entries", "VGG"], "no entry of sgs-table-4 is called 'VGG'"),
        (["reproduce", "sgs-table-4", "--seeds", "0"], "expected at least one seed, got none"),
        (["search", "sgs.q", "--values", "1"], "unknown setting 'q' of SgsSettings; expected one of k, "),
        (["search", "optimizer.lr"], "expected values to try for 'optimizer.lr'"),
        (["worker", "--study", "no/such/study"], "expected the runs of a study at no/such/study/study.db, found none"),
        (["report", "no/such/study"], "expected run folders with a result.json below no/such/study, found none"),
    ],
)
def test_what_a_study_cannot_work_with(arguments, text, capsys):
    assert main(arguments) == 2
    assert f"backpass: {text}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["compare", "--methods", "plain", "foo"], "got 'foo' with the unknown 'foo'"),
        (["train", "--recipe", "nope"], "unknown recipe 'nope'"),
        (["train", "--model", "nope"], "unknown model 'nope'"),
        (["train", "--data.name", "nope"], "package.module:function, got 'nope'; choose one of them"),
        (["train", "--data.name", "folder:/no/such/place"], "/no/such/place"),
        (["train", "--sgs.k", "-1", "--method", "sgs"], "expected sgs.k to be a finite number > 0"),
        (["train", "--pgt.alpha", "0", "--method", "pgt"], "alpha"),
    ],
)
def test_errors_are_one_line_and_status_2(arguments, text, capsys, tmp_path):
    assert main([*arguments, "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("backpass: ")
    assert text in error


def test_photographs_of_unequal_sizes_are_streamed_with_the_option_that_the_error_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photographs" / "cats", {"train": {"a": 4, "b": 4}, "test": {"a": 2, "b": 2}}, size=(9, 14))
    write_folder(tmp_path / "photographs" / "dogs", {"train": {"c": 4}, "test": {"c": 2}}, size=(12, 10))
    for split in ("train", "test"):
        (tmp_path / "photographs" / "dogs" / split / "c").rename(tmp_path / "photographs" / "cats" / split / "c")
    command = ["train", "--data.name", "folder:photographs/cats", "--data.limit-train", "None", "--data.limit-test"]
    command += ["None", "--epochs", "1", "--sgs.warmup", "0", "--batch-size", "4"]
    command += ["--runtime.device", "cpu", "--runtime.workers", "0"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "expected 9x14 pixels in " in error
    assert "got 12x10; resize the images, or give image_size (--data.image-size, of reproduce --image-size)" in error
    assert main([*command, "--data.image-size", "8", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["entries"]
    assert entry["n"] == 1


def test_paths_and_labels_are_not_taken_for_markup(tmp_path, capsys):
    out = tmp_path / "[bold]a[" / "b]"
    command = ["compare", *SMALL, "--methods", "plain", "--seeds", "0", "--data.label", "[/x]", "--out", str(out)]
    assert main(command) == 0
    assert f"runs   {out}\n" in capsys.readouterr().out
    assert main(["worker", "--study", str(out)]) == 0
    assert capsys.readouterr().out == f"1 runs have ended, 0 failed\nruns   {out}\n"
    assert main(["report", str(out)]) == 0
    assert "digits_net on [/x]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("out", "text"),
    [
        ("file", "got File exists"),
        ("file/x", "got Not a directory"),
        ("x" * 300, "got File name too long"),
        ("/proc/nope/x", "got No such file or directory"),
    ],
)
def test_folders_that_cannot_be_made_are_named_in_one_line(out, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["train", *SMALL, "--out", out]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("backpass: expected to read and write '")
    assert text in error
    assert error.endswith("; give another path or mend it")


def test_a_run_folder_that_was_put_aside_is_not_reported(tmp_path, capsys):
    out = tmp_path / "study"
    assert main(["compare", *SMALL, "--methods", "plain", "--seeds", "0", "--out", str(out)]) == 0
    aside = out / "plain-seed0.old"
    shutil.copytree(out / "plain-seed0", aside)
    record = json.loads((aside / "result.json").read_text())
    record["history"][-1]["test_accuracy"] = 0.99
    (aside / "result.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert main(["report", str(out), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["entries"]
    assert entry["mean"] != 0.99
