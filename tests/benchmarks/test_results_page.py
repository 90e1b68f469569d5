"""The page of results against the raw files, read here a second time without the code that makes the page."""

import json
import re
import shlex
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "results.md").read_text()


def raw(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def section(title: str) -> str:
    """Return the text under a heading of the page."""
    found = re.search(rf"^##+ {re.escape(title)}$(.*?)(?=^##? |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of a Markdown table, without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def leading(cell: str) -> float:
    return float(cell.split()[0])


@pytest.fixture
def page(benchmark_module):
    return benchmark_module("results_page")


def test_the_page_is_what_the_script_makes_of_the_files(page):
    assert page.page(RESULTS) == PAGE, "run `python benchmarks/results_page.py`, and commit docs/results.md"


KEPT = [path.stem for path in sorted(RESULTS.glob("*.json")) if "records" in json.loads(path.read_text())]


def score(record: dict) -> float:
    """Return the headline metric of a record at its end."""
    return record["history"][-1][f"{record['data']['split']}_{record.get('metric', 'accuracy')}"]


@pytest.mark.parametrize("name", KEPT)
def test_accuracies_are_those_of_the_records(name):
    content = raw(name)
    table = rows(section(f"{content['study']['title']}"))
    for entry in content["study"]["entries"]:
        own = {r["run"]["seed"]: r for r in content["records"] if r["entry"] == entry["key"]}
        if not own:
            continue
        values = [100 * score(r) for r in own.values()]
        (line,) = [cells for cells in table if cells[0] == entry["label"] and entry["method"] in cells]
        assert str(len(values)) in line
        assert f"{statistics.mean(values):.2f}" in line
        if len(values) > 1:
            assert f"{statistics.stdev(values):.2f}" in line
        if entry["baseline"]:
            plain = {r["run"]["seed"]: r for r in content["records"] if r["entry"] == entry["baseline"]}
            gaps = [100 * (score(own[s]) - score(plain[s])) for s in own]
            assert f"{statistics.mean(gaps):+.2f}" in line


def test_tables_of_accuracy_have_no_times():
    headers = re.findall(r"^(\|.*)\n\|:--", section("Accuracy"), re.MULTILINE)
    assert len(headers) == len(KEPT)
    for header in headers:
        columns = {cell.strip() for cell in header.strip("|").split("|")}
        assert {"method", "n"} <= columns
        assert not columns & {"relative time", "seconds", "GPU hours"}


def test_one_step_is_a_singular(benchmark_module):
    content, cost = raw("cost-cpu"), benchmark_module("sections").cost
    assert content["steps"] == 1
    assert "n = 3 rounds of 1 step." in section("Cost of training relative to the baseline, cpu")
    assert "n = 3 rounds of 50 steps." in cost(content | {"steps": 50})


def test_relative_times_of_the_cost_table():
    (result,) = [r for r in raw("cost-cpu")["results"] if r["model"] == "vgg16_small"]
    table = rows(section("Cost of training relative to the baseline, cpu"))
    for method, values in result["methods"].items():
        line = next(cells for cells in table if cells[0] == method)
        assert leading(line[1]) == round(statistics.median(values["step_ratios"]), 2)
        assert leading(line[2]) == round(statistics.median(values["run_ratios"]), 2)


def test_times_of_the_loss():
    table = rows(section("The PowerGrad loss and cross-entropy, cpu"))
    assert len(table) == len(raw("pgt-cpu")["results"])
    for line, result in zip(table, raw("pgt-cpu")["results"], strict=True):
        seconds = result["seconds"]
        ratios = [own / plain for plain, own in zip(seconds["plain"], seconds["power_grad"], strict=True)]
        assert leading(line[3]) == round(statistics.median(ratios), 2)
        assert line[4] == str(len(ratios))


def test_times_of_the_published_estimator():
    table = rows(section("The published estimator and ours, cpu"))
    for line, result in zip(table, raw("sgs-published-cpu")["rows"], strict=True):
        assert leading(line[1]) == round(statistics.median(result["seconds"]["ours"]), 2)
        assert leading(line[2]) == round(statistics.median(result["seconds"]["published"]), 2)
        assert leading(line[3]) == round(statistics.median(result["ratios"]), 2)


def test_claims_show_the_mean_of_the_stored_values():
    table = {cells[0]: cells for cells in rows(section("Claims on cost and speed"))}
    ratios = next(r["methods"] for r in raw("cost-cpu")["results"] if r["model"] == "vgg16_small")["sgs"]["run_ratios"]
    line = table["sgs: relative time of a whole run, VGG-16, cpu"]
    assert leading(line[2]) == pytest.approx(statistics.mean(ratios), abs=5e-4)
    assert line[3] == str(len(ratios))
    shares = [v for row in raw("sgs-cpu")["step"] if row["size"] == 128 for v in row["scale_share"]]
    line = table["scale_gradients, fraction of a VGG-16 step at batch 128, cpu"]
    assert leading(line[2]) == pytest.approx(statistics.mean(shares), rel=5e-3)


def test_published_times_are_the_gpu_hours_of_sgs_table_1_over_those_of_plain_training(benchmark_module):
    hours = {"sgs": 2.5, "dbb_dyrep": 7.0, "dyrep": 7.2}
    published = benchmark_module("paper").RELATIVE_TIME["vgg16_small"]
    assert published == pytest.approx({method: value / 2.3 for method, value in hours.items()})
    claims = {claim.subject: claim for claim in benchmark_module("claims").CLAIMS}
    assert claims["sgs: relative time of a whole run, VGG-16, cpu"].high == pytest.approx(2.5 / 2.3)
    dyrep = claims["dyrep: relative time of a whole run, VGG-16, cpu"]
    assert (dyrep.low, dyrep.high) == pytest.approx((0.85 * 7.2 / 2.3, 1.15 * 7.2 / 2.3))


def commands() -> dict[str, list[str]]:
    """Return the words of the command of each file, by its stem."""
    table = rows(section("Where it was measured"))
    return {cells[0].removesuffix(".json"): shlex.split(cells[-1].strip("`")) for cells in table}


def options(words: list[str]) -> dict[str, list[str]]:
    """Return the values of the options of a command."""
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            found[word] = []
        elif found:
            found[list(found)[-1]].append(word)
    return found


def test_every_file_stands_next_to_the_command_that_makes_it():
    shown = commands()
    assert set(shown) == {path.stem for path in RESULTS.glob("*.json")}
    for name, words in shown.items():
        content = raw(name)
        if "command" in content:
            assert shlex.join(words) == content["command"]
            continue
        python, script, *rest = words
        assert python == "python"
        source = (ROOT / script).read_text()
        assert f"python {script}" in source.split('"""')[1]
        assert all(f'add_argument("{option}"' in source for option in options(rest))
        output = options(rest).get("--output", [f"benchmarks/results/{name}.json"])
        assert output == [f"benchmarks/results/{name}.json"]


def test_commands_have_the_settings_that_their_files_hold(benchmark_module):
    shown = commands()
    cost = raw("cost-cpu")
    parsed = vars(benchmark_module("cost").parsed(shown["cost-cpu"][2:]))
    names = ("device", "batch", "steps", "rounds", "precision", "channels_last")
    assert {name: parsed[name] for name in names} == {name: cost[name] for name in names}
    assert list(parsed["models"]) == [result["model"] for result in cost["results"]]
    for name, clock in (("sgs-old-new", ["cpu"]), ("sgs-old-new-wall", ["wall"])):
        given, content = options(shown[name]), raw(name)
        assert given["--commits"] == list(content["commits"].values())
        assert given["--only"] == [row["what"] for row in content["rows"]]
        assert given.get("--clock", ["cpu"]) == clock == [content["clock"]]
    assert options(shown["pgt-cpu"])["--threads"] == [str(raw("pgt-cpu")["environment"]["threads"])]
    timm = options(shown["throughput-timm-cpu"])
    assert [timm["--models"], timm["--batches"]] == [
        list({str(result[key]) for result in raw("throughput-timm-cpu")["results"]}) for key in ("model", "batch")
    ]
    published = raw("sgs-published-cpu")["rows"]
    assert {128 * int(size) for size in options(shown["sgs-published-cpu"])["--sizes"]} == {
        row["images"] for row in published
    }


def test_what_was_not_run_is_folded_and_gets_no_numbers(page, tmp_path):
    text = page.page(tmp_path)
    assert text.count("sgs-table-4") == 1
    assert "`sgs-table-4`" in text.partition("## Not run")[2]
    assert "Claims: sgs: relative time" in text
    assert not re.search(r"\d\.\d+ \(", text)


@pytest.mark.parametrize(
    ("values", "bounds", "verdict"),
    [
        ([1.00, 1.01, 1.02], {"high": 1.09}, "held"),
        ([1.05, 1.08, 1.11], {"high": 1.09}, "inconclusive"),
        ([1.20, 1.21, 1.22], {"high": 1.09}, "not held"),
        ([2.1, 2.0, 2.2], {"low": 1.5, "high": 2.5}, "held"),
        ([1.0], {"high": 1.09}, "single value"),
    ],
)
def test_the_interval_decides_and_not_the_median(benchmark_module, values, bounds, verdict):
    claims = benchmark_module("claims")
    claim = claims.Claim("c", "f", lambda content: {"": content}, **bounds)
    assert claims.judge(claim, values).verdict == verdict


def test_the_worst_setting_decides(benchmark_module):
    claims = benchmark_module("claims")
    claim = claims.Claim("c", "f", lambda content: content, high=2.0)
    found = claims.judge(claim, {"small": [1.0, 1.1, 1.2], "large": [1.9, 2.0, 2.1], "none": []})
    assert (found.setting, found.verdict, found.n) == ("large", "inconclusive", 3)
    assert claims.judge(claim, {"none": []}) is None


@pytest.mark.parametrize(("name", "clock", "count"), [("sgs-old-new", "CPU", 5), ("sgs-old-new-wall", "wall", 4)])
def test_before_and_after(name, clock, count):
    table = rows(section(f"SGS before and after its measuring code was rewritten, {clock} time"))
    stored = raw(name)["rows"]
    assert len(table) == len(stored) == count
    for line, row in zip(table, stored, strict=True):
        ratios = [new / old for old, new in zip(row["old"], row["new"], strict=True)]
        assert leading(line[3]) == pytest.approx(statistics.median(ratios), abs=0.006)
        assert line[4] == str(len(ratios))
