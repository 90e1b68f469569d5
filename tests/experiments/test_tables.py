import json
from dataclasses import replace

import pytest
from backpass.experiments.plan import Line, Plan

from backpass.experiments.tables import result_table, write_tables
from backpass.training.recipe import Recipe

RECIPE = Recipe(epochs=2)
PLAN = Plan(
    "A & B_1",
    (
        Line("VGG-11", "plain", RECIPE, paper=0.708),
        Line("VGG-11", "sgs", RECIPE, baseline=0, paper=0.732),
        Line("VGG-11", "dbb", None, paper=0.72),
    ),
    (0, 1, 2),
    ("100 % ours",),
)


@pytest.fixture
def table(make_result):
    plain = [make_result(RECIPE, "plain", seed, [a], seconds=2.0) for seed, a in enumerate([0.60, 0.70, 0.80])]
    sgs = [make_result(RECIPE, "sgs", seed, [a], seconds=3.0) for seed, a in enumerate([0.61, 0.72, 0.83])]
    return result_table(PLAN, plain + sgs)


def test_markdown(table):
    # Differences 1, 2, 3 points: the interval is 2 -+ 4.302653 / sqrt(3), p = 1 - sqrt(12 / 14).
    assert table.markdown() == (
        "**A & B_1**\n"
        "\n"
        "| row | method | n | accuracy, % | std | difference | 95 % interval | p | time ratio | seconds a run "
        "| paper, % |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| VGG-11 | plain | 3 | 70.00 | 10.00 |  |  |  |  | 2.0 | 70.80 |\n"
        "| VGG-11 | sgs | 3 | 72.00 | 11.00 | +2.00 | -0.48 to +4.48 | 0.074 | 1.50 | 3.0 | 73.20 |\n"
        "| VGG-11 | dbb | 0 | not run |  |  |  |  |  |  | 72.00 |\n"
        "\n"
        "- 100 % ours\n"
    )


def test_latex(table):
    lines = table.latex().splitlines()
    assert r"\caption{A \& B\_1. 100 \% ours.}" in lines
    assert r"\begin{tabular}{llrrrrrrrrr}" in lines
    assert r"VGG-11 & sgs & 3 & 72.00 & 11.00 & +2.00 & -0.48 to +4.48 & 0.074 & 1.50 & 3.0 & 73.20 \\" in lines
    assert lines[5] == (
        r"row & method & n & accuracy, \% & std & difference & 95 \% interval & p & time ratio & seconds a run "
        r"& paper, \% \\"
    )


def test_csv_holds_the_numbers_themselves(table):
    header, plain, sgs, dbb = (line.split(",") for line in table.csv().splitlines())
    row = dict(zip(header, sgs, strict=True))
    assert (row["label"], row["method"], row["n"], row["values"]) == ("VGG-11", "sgs", "3", "0:0.61 1:0.72 2:0.83")
    assert float(row["mean"]) == pytest.approx(0.72)
    assert float(row["difference_mean"]) == pytest.approx(0.02)
    assert float(row["difference_p"]) == pytest.approx(0.0741799)
    assert (row["parameters"], row["paper"], row["gpu_hours"]) == ("56554", "0.732", "")
    assert dict(zip(header, plain, strict=True))["difference_mean"] == ""
    assert dict(zip(header, dbb, strict=True))["mean"] == ""


def test_json_is_what_was_summarized(table):
    content = json.loads(json.dumps(table.as_dict()))
    assert (content["title"], content["notes"]) == ("A & B_1", ["100 % ours"])
    assert [row["method"] for row in content["rows"]] == ["plain", "sgs", "dbb"]
    assert content["rows"][1]["difference"]["n"] == 3


def test_columns_that_say_nothing_are_left_out(make_result):
    plan = Plan("t", (Line("plain", "plain", RECIPE), Line("sgs", "sgs", RECIPE, baseline=0)), (0,))
    table = result_table(plan, [make_result(RECIPE, "plain", 0, [0.5])])
    assert table.header == ("method", "n", "accuracy, %", "seconds a run")
    assert table.rows == (("plain", "1", "50.00", "1.0"), ("sgs", "0", "not run", ""))


def test_files(table, tmp_path):
    write_tables(table, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "table.tex", "table.csv", "table.json"}
    assert (tmp_path / "table.md").read_text() == table.markdown()
    assert json.loads((tmp_path / "table.json").read_text())["title"] == "A & B_1"


def test_the_terminal_shows_the_same_cells(table):
    rich = table.rich()
    assert tuple(column.header for column in rich.columns) == table.header
    assert [list(column.cells) for column in rich.columns] == [list(texts) for texts in zip(*table.rows, strict=True)]


def test_sizes_are_shown_where_training_and_deployment_differ(make_result):
    plain = make_result(RECIPE, "plain", 0, [0.6])
    branched = make_result(RECIPE, "dbb", 0, [0.7])
    branched = replace(branched, model=branched.model | {"parameters": 130_000, "macs": 4_200_000})
    plan = Plan("sizes", (Line("plain", "plain", RECIPE), Line("dbb", "dbb", RECIPE, baseline=0)), (0,), ())
    table = result_table(plan, [plain, branched])
    assert table.header[-2:] == ("trained", "deployed")
    assert [row[-2:] for row in table.rows] == [
        ("0.06M / 1.8M", "0.06M / 1.8M"),
        ("0.13M / 4.2M", "0.06M / 1.8M"),
    ]
