import csv
import io
import json
import traceback
from dataclasses import replace

import pytest
from rich.console import Console

from backpass.errors import DivergedError
from backpass.experiments import Entry, Published, Study, compare_study, result_table
from backpass.experiments.reporting.statistics import summarize
from backpass.experiments.reporting.tables import calibration_table, write_tables
from backpass.experiments.reporting.terminal import terminal_table
from backpass.experiments.tuning import Tuning, parse_space
from backpass.training.recipe import Recipe

RECIPE = Recipe(epochs=2)
STUDY = Study(
    "A & B_1",
    (
        Entry("plain", "VGG-11", "plain", RECIPE, published=Published(70.8, 0.1, 2.3)),
        Entry("sgs", "VGG-11", "sgs", RECIPE, "plain", published=Published(73.2, 0.1, 2.5)),
        Entry("dbb", "VGG-11 | x", "dbb", None, "plain", published=Published(72.0, copied=True)),
    ),
    (0, 1, 2),
    ("100 % ours",),
)


@pytest.fixture
def table(make_record):
    plain = [make_record(RECIPE, "plain", s, [a], entry="plain", seconds=2.0) for s, a in enumerate([0.6, 0.7, 0.8])]
    sgs = [make_record(RECIPE, "sgs", s, [a], entry="sgs", seconds=3.0) for s, a in enumerate([0.61, 0.72, 0.83])]
    return result_table(STUDY, plain + sgs)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown(table):
    # Differences 1, 2, 3 points: the interval is 2 -+ 4.302653 / sqrt(3), p = 1 - sqrt(12 / 14).
    title, _, header, rule, plain, sgs, *notes = table.markdown().splitlines()
    assert title == "**A & B_1**"
    assert dict(zip(cells(header), cells(sgs), strict=True)) == {
        "entry": "VGG-11",
        "method": "sgs",
        "n": "3",
        "accuracy, %": "72.00",
        "std": "11.00",
        "difference": "+2.00",
        "95 % CI": "-0.48 to +4.48",
        "p (Holm)": "0.074",
        "relative time": "1.50",
        "seconds": "3.0",
        "published": "73.2 ± 0.1",
        "published cost": "2.5",
    }
    assert dict(zip(cells(header), cells(plain), strict=True))["difference"] == ""
    assert [cell.endswith(":") for cell in cells(rule)] == [False, False] + [True] * 10
    assert notes == ["- 100 % ours", r"- not run: VGG-11 \| x (dbb)"]


def test_latex(table):
    lines = table.latex().splitlines()
    assert r"\caption{A \& B\_1. 100 \% ours.}" in lines
    assert r"\begin{tabular}{llrrrrrrrrrr}" in lines
    sgs = next(line for line in lines if "73.2" in line)
    assert [cell.strip() for cell in sgs.removesuffix(r"\\").split("&")][:4] == ["VGG-11", "sgs", "3", "72.00"]
    assert next(line for line in lines if "accuracy" in line).count(r"\%") == 2


def test_csv_holds_the_numbers_themselves(table):
    plain, sgs, dbb = csv.DictReader(io.StringIO(table.csv()))
    assert (sgs["label"], sgs["method"], sgs["n"], sgs["values"]) == ("VGG-11", "sgs", "3", "0:0.61 1:0.72 2:0.83")
    assert float(sgs["mean"]) == pytest.approx(0.72)
    assert float(sgs["difference_mean"]) == pytest.approx(0.02)
    assert float(sgs["difference_p"]) == pytest.approx(0.0741799)
    assert (sgs["params"], sgs["published_value"], sgs["published_cost"], sgs["gpu_hours"]) == (
        "56554",
        "73.2",
        "2.5",
        "",
    )
    assert plain["difference_mean"] == ""
    assert dbb["mean"] == ""


def test_json_is_what_was_summarized(table):
    content = json.loads(json.dumps(table.as_dict()))
    assert (content["title"], content["notes"]) == ("A & B_1", ["100 % ours"])
    assert [entry["method"] for entry in content["entries"]] == ["plain", "sgs", "dbb"]
    assert content["entries"][1]["difference"]["n"] == 3


def test_columns_without_values_are_left_out(make_record):
    study = Study("t", (Entry("plain", "plain", "plain", RECIPE), Entry("sgs", "sgs", "sgs", RECIPE, "plain")), (0,))
    table = result_table(study, [make_record(RECIPE, "plain", 0, [0.5], entry="plain", train_accuracy=0.25)])
    assert table.header == ("method", "n", "accuracy, %", "train accuracy, %", "seconds")
    assert table.rows == (("plain", "1", "50.00", "25.00", "1.0"), ("sgs", "0", "not run", "", ""))


def test_files(table, tmp_path):
    write_tables(table, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "table.tex", "table.csv", "table.json"}
    assert (tmp_path / "table.md").read_text() == table.markdown()
    assert json.loads((tmp_path / "table.json").read_text())["title"] == "A & B_1"


def test_the_terminal_shows_the_same_cells(table):
    rich = table.rich()
    assert tuple(column.header for column in rich.columns) == table.header
    assert [list(column.cells) for column in rich.columns] == [list(texts) for texts in zip(*table.rows, strict=True)]


SEEDS = (0, 1, 2, 3, 4, 7)


def survivors(make_record, missing):
    """Returns a comparison of plain, sgs and pgt, and its records, without the seeds of ``missing``."""
    study = compare_study(RECIPE, ["plain", "sgs", "pgt"], SEEDS)
    kept = [(entry.key, seed) for entry in study.entries for seed in SEEDS if seed not in missing.get(entry.key, ())]
    return study, [make_record(RECIPE, key, seed, [0.5 + seed / 100], entry=key) for key, seed in kept]


@pytest.mark.parametrize(
    ("missing", "note"),
    [
        ({"sgs": (1,)}, "sgs, seed 1"),
        ({"sgs": (1, 3)}, "sgs, seeds 1 and 3"),
        ({"plain": (0, 1, 2, 7), "sgs": (1, 2, 3)}, "plain, seeds 0 to 2 and 7; sgs, seeds 1 to 3"),
        ({"plain": (1, 3, 7)}, "plain, seeds 1, 3 and 7"),
    ],
)
def test_seeds_without_a_record_are_named(missing, note, make_record):
    table = result_table(*survivors(make_record, missing))
    assert table.notes == (f"missing from means and tests: {note}",)
    assert f"- {table.notes[0]}\n" in table.markdown()
    assert table.notes[0] in table.latex()


def test_whether_a_missing_run_diverged_or_failed_is_said(make_record, tmp_path):
    study, records = survivors(make_record, {"plain": (7,), "sgs": (1, 2, 3), "pgt": SEEDS})
    for name, error in [("sgs-seed1", DivergedError("a\nb")), ("sgs-seed2", OSError()), ("sgs-seed3", DivergedError())]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "error.txt").write_text("".join(traceback.format_exception(error)))
    assert result_table(study, records, tmp_path).notes == (
        "missing from means and tests: plain, seed 7; sgs, seeds 1 and 3 (diverged); sgs, seed 2 (failed)",
    )  # pgt reads "not run"
    (tmp_path / "sgs-seed1").rename(tmp_path / "pgt-seed1")
    assert "pgt, seeds 0, 2 to 4 and 7; pgt, seed 1 (diverged)" in result_table(study, records, tmp_path).notes[0]


def test_nothing_is_missing_where_nothing_was_to_run(make_record):
    study, records = survivors(make_record, {})
    assert result_table(study, records).notes == ()
    assert result_table(study, []).notes == ()  # "not run"
    shared = replace(study.entries[0], key="twin", label="twin", runs_of="plain")
    shown = replace(study.entries[1], key="shown", label="shown", recipe=None)
    study = replace(study, entries=(*study.entries, shared, shown))
    assert result_table(study, records).notes == ()
    assert (
        "; twin (plain), seed 0"
        in result_table(study, [r for r in records if (r.entry, r.seed) != ("plain", 0)]).notes[0]
    )
    tuned = compare_study(RECIPE, ["plain"], SEEDS, space=parse_space(["lr=0.1,0.2"]), tuning=Tuning(seeds=(9,)))
    assert result_table(tuned, records[:3]).notes == ()


def test_sizes_are_shown_where_training_and_deployment_differ(make_record):
    plain = make_record(RECIPE, "plain", 0, [0.6], entry="plain")
    branched = make_record(RECIPE, "dbb", 0, [0.7], entry="dbb")
    branched = replace(branched, model=replace(branched.model, parameters=130_000, macs=4_200_000))
    study = Study(
        "sizes", (Entry("plain", "plain", "plain", RECIPE), Entry("dbb", "dbb", "dbb", RECIPE, "plain")), (0,)
    )
    table = result_table(study, [plain, branched])
    assert table.header[-2:] == ("trained params / FLOPs", "deployed params / FLOPs")
    assert [row[-2:] for row in table.rows] == [("0.06M / 1.8M", "0.06M / 1.8M"), ("0.13M / 4.2M", "0.06M / 1.8M")]


@pytest.mark.parametrize("label", ["=1+1", "+1", "-1", "@x"])
def test_labels_are_no_formulas_in_a_spreadsheet(label, make_record):
    study = Study("t", (Entry("a", label, "plain", RECIPE),), (0,))
    (line,) = csv.DictReader(io.StringIO(result_table(study, []).csv()))
    assert line["label"] == f"'{label}"


def test_labels_are_no_markup(make_record):
    label = "[bold]a | <b>"
    study = Study("[red]t", (Entry("a", label, "plain", RECIPE),), (0,))
    table = result_table(study, [make_record(RECIPE, "plain", 0, [0.5], entry="a")])
    assert r"[bold]a \| &lt;b>" in table.markdown()
    assert table.rich().columns[0]._cells == [r"\[bold]a | <b>"]
    assert table.rich().title == r"\[red]t"


def test_calibration_at_z_and_at_alpha_z(make_record):
    plain, pgt = (make_record(RECIPE, name, 0, [0.5], entry=name) for name in ("plain", "pgt"))
    plain.history[-1] |= {"test_loss": 0.5, "test_calibration_error": 0.0125}
    pgt.history[-1] |= {"test_loss": 1.0, "test_calibration_error": 0.25, "test_loss_at_alpha": 0.4}
    study = Study("t", (Entry("plain", "plain", "plain", RECIPE), Entry("pgt", "pgt", "pgt", RECIPE)), (0,))
    header, rows = calibration_table(summarize(study.entries, [plain, pgt]))
    assert header == ("entry", "loss", "ECE, %", "loss at alpha z", "ECE at alpha z, %")
    assert rows == [("plain", "0.500", "1.250", "", ""), ("pgt", "1.000", "25.000", "0.400", "")]
    assert calibration_table(summarize(study.entries, []))[1] == []


def test_a_narrow_terminal_keeps_every_digit():
    console = Console(file=io.StringIO(), width=20)
    console.print(terminal_table("t", [], ["entry", "published"], [["VGG net", "91.23456789012345"]]))
    assert "".join(filter(str.isdigit, console.file.getvalue())) == "9123456789012345"
