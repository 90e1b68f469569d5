"""The claims, their records, and the page made from them, read here a second time without the code that makes it."""

import gzip
import html
import importlib
import json
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.stats

from backpass.experiments import Study, Tuning, compare_study, parse_space
from backpass.experiments.reporting.differences import Difference
from backpass.experiments.stages import next_runs, tuning_study
from reference.study_workers import TINY

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "claims"
PAGE = (ROOT / "docs" / "claims.md").read_text()
SHOWN = html.unescape(PAGE)
PROSE = {
    "README.md": ("Questions on accuracy", "## Cost"),
    "src/backpass/sgs/README.md": ("## Measured here", "## Source"),
    "src/backpass/pgt/README.md": ("## Measured here", "## Source"),
}
"""Where differences are stated in sentences, from a text to a text."""
TOOLS = ("claim", "page", "picture", "run", "settings")
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in TOOLS)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in (*TOOLS, *NAMES):
        monkeypatch.delitem(sys.modules, name, raising=False)


def claim_of(name: str):
    return importlib.import_module(name).CLAIM


def lines_of(name: str) -> list[dict]:
    path = FOLDER / "results" / name / "records.jsonl.gz"
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()] if path.is_file() else []


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_is_a_study_with_a_rule(name):
    claim = claim_of(name)
    assert isinstance(claim.study, Study)
    assert claim.question.endswith("?")
    assert len(claim.study.seeds) >= 10
    assert claim.smallest > 0
    assert any(entry.baseline for entry in claim.study.entries)
    if claim.study.tuning is not None:
        tuning_study(claim.study)


@pytest.mark.parametrize("name", NAMES)
def test_kept_records_are_runs_of_the_claim(name):
    claim = claim_of(name)
    recipes = {entry.key: entry.recipe for entry in claim.study.entries}
    recipes |= {run.entry: run.run.recipe for run in next_runs(claim.study, FOLDER / "results" / name)}
    seen = set()
    for line in lines_of(name):
        recipe = recipes[line["entry"]]
        assert line["run"]["recipe"]["model"] == recipe.model
        assert line["run"]["recipe"]["epochs"] == recipe.epochs == len(line["history"])
        seen.add((line["entry"], line["run"]["seed"]))
    assert len(seen) == len(lines_of(name))


@pytest.mark.parametrize("name", sorted(path.parent.name for path in FOLDER.glob("results/*/tuning.json")))
def test_points_that_are_tied_in_tuning_are_named_on_the_page(name):
    section = SHOWN.partition(f"\n## {name.replace('_', '-')}\n")[2].partition("\n## ")[0]
    stated = re.findall(r"^- .*?: (.*), the best of \d+ points(?:, tied with ([^;\n]*))?", section, re.MULTILINE)
    if "runs so far." in section:  # settings are stated with the verdict
        assert not stated
        return
    expected = []
    for choice in json.loads((FOLDER / "results" / name / "tuning.json").read_text())["choices"]:
        texts = [", ".join(f"{key} = {value}" for key, value in trial["point"]) for trial in choice["trials"]]
        means = [statistics.fmean(score for _, score in trial["scores"]) for trial in choice["trials"]]
        best = choice["best"]
        ties = [n for n, mean in enumerate(means) if mean == pytest.approx(means[best], abs=1e-5)]
        assert best == ties[0]
        expected.append((texts[best], " and with ".join(texts[n] for n in ties[1:])))
    assert sorted(stated) == sorted(expected)


def test_the_page_is_made_from_the_records():
    page = importlib.import_module("page")
    assert page.page(NAMES) == PAGE


def test_the_picture_has_the_differences_of_the_page():
    drawn = re.findall(r">([^<>]+)</text>", (ROOT / "docs" / "pictures" / "claims.svg").read_text())
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in SHOWN.partition("\n## ")[0].splitlines()]
    shown = [row for row in rows if len(row) == 6 and row[1] in ("sgs", "pgt", "sgs+pgt")]
    assert shown
    assert [text for text in drawn if re.fullmatch(r"[+-]\d\.\d\d", text)] == [row[2] for row in shown]
    claims = dict.fromkeys(row[0].partition("]")[0].removeprefix("[") for row in shown)
    assert [text for text in drawn if text.replace(" ", "_") in claims] == [name.replace("_", " ") for name in claims]


def test_no_record_has_a_path_of_a_machine():
    for name in NAMES:
        assert not re.search(r'"/|:/|"[A-Z]:\\\\', json.dumps(lines_of(name)))


@pytest.mark.parametrize("name", [name for name in NAMES if lines_of(name)])
def test_differences_on_the_page_follow_from_the_raw_records(name):
    claim, by_entry = claim_of(name), {}
    for line in lines_of(name):
        last = line["history"][-1]
        by_entry.setdefault(line["entry"], {})[line["run"]["seed"]] = 100 * last.get("test_accuracy", float("nan"))
    section = SHOWN.partition(f"\n## {name.replace('_', '-')}\n")[2].partition("\n## ")[0]
    complete = all(len(by_entry.get(e.key, ())) == len(claim.study.seeds) for e in claim.study.entries)
    assert ("| effect size |" in section.replace("   ", " ").replace("  ", " ")) == complete
    for entry in claim.study.entries if complete else ():
        if entry.baseline is None:
            continue
        ours, base = by_entry[entry.key], by_entry[entry.baseline]
        found = [ours[seed] - base[seed] for seed in claim.study.seeds]
        shown = [cell.strip() for row in section.splitlines() if row.startswith("|") for cell in row.split("|")]
        assert f"{statistics.fmean(found):+.2f}" in shown
        if max(found) > min(found):
            p = scipy.stats.ttest_1samp(found, 0).pvalue
            assert ("<0.001" if p < 0.001 else f"{p:.3f}") in shown


@pytest.mark.parametrize("name", NAMES)
def test_the_power_on_the_page_is_that_of_the_claims_own_number_of_differences(name):
    claim = claim_of(name)
    section = SHOWN.partition(f"\n## {name.replace('_', '-')}\n")[2].partition("\n## ")[0]
    stated = re.search(
        r"- Power: (\S+) for a difference of (\S+) points .* (\d+) seeds and at p < (\S+) / (\d+)\.\n", section
    )
    power, difference, seeds, level, number = map(float, stated.groups())
    assert (difference, seeds, level) == (claim.smallest, len(claim.study.seeds), claim.level)
    assert number == len([entry for entry in claim.study.entries if entry.baseline])
    std = 0.7 if "digits" in name else 0.8 if "few_images" in name else 0.6
    assert f"standard deviation of {std} points" in claim.seeds_from
    bound = scipy.stats.t.isf(level / number / 2, seeds - 1)
    assert power == round(float(scipy.stats.nct.sf(bound, seeds - 1, seeds**0.5 * difference / std)), 2)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Difference(9, 0.01, low=0.002, high=0.018, p=0.02, p_holm=0.04), "gain"),
        (Difference(9, -0.01, low=-0.018, high=-0.002, p=0.02, p_holm=0.04), "loss"),
        (Difference(9, 0.01, low=0.002, high=0.018, p=0.02, p_holm=0.06), "inconclusive"),
        (Difference(9, 0.001, low=-0.001, high=0.003, p=0.3, p_holm=0.3), "no difference of interest"),
        (Difference(1, 0.01), "inconclusive"),
    ],
)
def test_verdicts_by_hand(found, verdict):
    claim = claim_of("fixed_digits")  # 0.5 points, level 0.05
    assert importlib.import_module("page").verdict(found, claim) == verdict


@pytest.mark.parametrize("path", PROSE)
def test_differences_in_prose_are_rows_of_the_page(path):
    start, end = PROSE[path]
    prose = " ".join((ROOT / path).read_text().partition(start)[2].partition(end)[0].split())
    rows = {}  # by interval: means and p-values, since two claims may share runs; a loss is stated without its sign
    for line in SHOWN.partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 6 and " to " in cells[3]:
            low, high = map(float, cells[3].split(" to "))
            for sign, interval in ((1, (low, high)), (-1, (-high, -low))):
                rows.setdefault(interval, []).append((sign * float(cells[2]), cells[4]))
    stated = list(re.finditer(r"\((?:95 % CI )?(-?\d+\.\d+) to (-?\d+\.\d+)(?:, p (<?\d\.\d+))?", prose))
    assert stated
    for found in stated:
        before = re.search(r"([+-]?\d+\.\d+)(?: points[^.()]*)? ?$", prose[: found.start()])
        assert any(
            (found[3] is None or found[3] == p) and (before is None or float(before[1]) == mean)
            for mean, p in rows[float(found[1]), float(found[2])]
        ), found[0]


def test_records_that_are_kept_are_not_run_again(tmp_path, monkeypatch):
    run = importlib.import_module("run")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    name = next(name for name in NAMES if lines_of(name))
    lines = lines_of(name)[:3]
    (tmp_path / "results" / name).mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "results" / name / "records.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    run.restore(name, tmp_path / "study")
    folders = {path.parent.name for path in (tmp_path / "study").glob("*/result.json")}
    assert folders == set(run.read_kept(name))
    assert len(folders) == 3
    run.keep(name, tmp_path / "study")
    assert list(run.read_kept(name)) == sorted(folders)


def test_some_entries_of_a_tuned_claim_first_and_then_all(tmp_path, monkeypatch):
    run, claim = importlib.import_module("run"), claim_of("tuned_digits")
    study = compare_study(TINY, ("plain", "pgt"), (0,), space=parse_space(["lr=0.05,0.1"]), tuning=Tuning(seeds=(7,)))
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "load_claim", lambda name: replace(claim, study=study))
    run.run("tiny", tmp_path / "here", entries=["plain"], processes=1)
    assert len(run.read_kept("tiny")) == 3
    run.run("tiny", tmp_path / "elsewhere", entries=(), processes=1)
    assert len(run.read_kept("tiny")) == 6
    choices = json.loads((tmp_path / "results" / "tiny" / "tuning.json").read_text())["choices"]
    assert [choice["entry"] for choice in choices] == ["plain", "pgt"]


def test_runs_of_other_claims_are_borrowed_in_both_stages(tmp_path, monkeypatch):
    run, claim = importlib.import_module("run"), claim_of("tuned_digits")
    faster = replace(TINY, optimizer=replace(TINY.optimizer, lr=0.1))
    tuned = compare_study(TINY, ("plain",), (0,), space=parse_space(["lr=0.1"]), tuning=Tuning(seeds=(7,)))
    (point,) = tuning_study(tuned).entries
    studies = {
        "fixed": compare_study(faster, ("plain",), (0,)),
        "held_out": replace(tuned, entries=(replace(point, key="another"),), seeds=(7,), tuning=None),
        "tuned": tuned,
    }
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "NAMES", tuple(studies))
    monkeypatch.setattr(run, "load_claim", lambda name: replace(claim, study=studies[name]))
    for name in studies:
        run.run(name, tmp_path / name, entries=(), processes=1)
    fixed, held_out, kept = map(run.read_kept, studies)
    assert kept == fixed | {f"{point.key}-seed7": replace(held_out["another-seed7"], entry=point.key)}


def test_a_run_in_another_precision_is_not_borrowed(tmp_path, monkeypatch):
    run, claim = importlib.import_module("run"), claim_of("fixed_digits")
    study = compare_study(TINY, ("plain", "pgt"), (0,))
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "NAMES", ("fixed", "twin"))
    monkeypatch.setattr(run, "load_claim", lambda name: replace(claim, study=study))
    run.run("fixed", tmp_path / "fixed", entries=("plain",), processes=1)
    run.borrow("twin", study, replace(claim.runtime, precision="bf16"), tmp_path / "twin")
    assert not list((tmp_path / "twin").glob("*"))
    run.borrow("twin", study, claim.runtime, tmp_path / "twin")
    assert [path.name for path in (tmp_path / "twin").glob("*")] == ["plain-seed0"]


def test_the_command_names_the_claims():
    command = [sys.executable, str(FOLDER / "run.py"), "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(name in printed.replace("\n", "") for name in NAMES)
