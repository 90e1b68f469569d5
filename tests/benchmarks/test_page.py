"""The page of results is what its script makes of the files beside it, and follows what they hold."""

import json
from pathlib import Path

import pytest

ENVIRONMENT = {"commit": None, "cpu": "a CPU", "threads": 1}


@pytest.fixture
def page(benchmark_module):
    return benchmark_module("page")


def row(method: str, values: list[float], difference: dict | None = None) -> dict:
    mean = sum(values) / len(values)
    by_seed = {str(seed): value for seed, value in enumerate(values)}
    line = {"label": method, "method": method, "n": len(values), "mean": mean, "std": 0.01, "values": by_seed}
    return line | {"difference": difference}


def study(*rows: dict, complete: bool = True) -> dict:
    run = {"run": {"recipe": {"epochs": 7}}, "data": {"train": 100}, "environment": ENVIRONMENT}
    table = {"title": "", "notes": ["a note"], "rows": list(rows)}
    return {"command": "backpass compare", "table": table, "runs": [run], "complete": complete}


def write(folder: Path, **files: dict) -> Path:
    for name, content in files.items():
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps(content))
    return folder


def line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_the_page_is_what_the_script_makes_of_the_files(page):
    made = page.page(page.RESULTS)
    assert page.PAGE.read_text() == made, "run `python benchmarks/page.py`, and commit docs/results.md"


def test_without_files_nothing_was_run(page, tmp_path):
    text = page.page(tmp_path)
    claims = [line for line in text.splitlines() if line.startswith("| ") and "paper" in line and "CIFAR-10" in line]
    assert claims
    assert all("not run" in claim for claim in claims)
    assert text.count("Not run.") == len(page.COMPARISONS) + 13
    assert " yes |" not in text


@pytest.mark.parametrize(
    ("low", "high", "held"), [(0.01, 0.02, "yes"), (-0.01, 0.02, "cannot be told"), (-0.02, -0.01, "no, less")]
)
def test_a_gain_is_held_where_its_interval_is_above_zero(page, tmp_path, low, high, held):
    difference = {"n": 2, "mean": (low + high) / 2, "low": low, "high": high, "p": 0.04}
    write(tmp_path, accuracy_vgg16_cuda=study(row("plain", [0.5, 0.6]), row("sgs", [0.6, 0.7], difference)))
    claim = line(page.page(tmp_path), "| sgs is more accurate than plain, VGG-16")
    assert claim.endswith(f"| 2 | {held} |")
    assert f"({100 * low:+.2f} to {100 * high:+.2f}), 7 epochs" in claim


def test_sgs_alone_is_held_against_the_plain_runs_of_the_same_seeds(page, tmp_path):
    write(
        tmp_path,
        accuracy_vgg11_cuda=study(row("plain", [0.50, 0.52, 0.54])),
        accuracy_vgg11_autocorrelation_cuda=study(row("sgs", [0.53, 0.54]), complete=False),
    )
    text = page.page(tmp_path).partition("SGS with autocorrelation")[2]
    assert "| sgs | 2 | 53.50 | 1.00 | +2.50 |" in text
    assert text.index("Cut short by a limit of time") < text.index("| sgs | 2")


@pytest.mark.parametrize(("ratios", "held"), [([1.05, 1.08, 1.2], "yes"), ([1.05, 1.10, 1.2], "no")])
def test_the_cost_of_sgs_is_held_up_to_the_papers(page, tmp_path, ratios, held):
    size = {"parameters": 2_000_000, "macs": 3_000_000, "deployed_parameters": 2_000_000, "deployed_macs": 3_000_000}
    memory = {"memory_mb": 10.0, "memory_ratio": 1.0}
    plain = {"step_ratios": [1.0] * 3, "run_ratios": [1.0] * 3, "paper_run_ratio": None}
    plain["seconds"] = {"step": [0.5, 0.5, 0.5], "update": [], "epochs": []}
    sgs = {"step_ratios": ratios, "run_ratios": ratios, "paper_run_ratio": 1.09}
    sgs["seconds"] = {"step": [0.5, 0.5, 0.5], "update": [1.0, 1.0, 1.0], "epochs": [1]}
    result = {
        "model": "vgg16_small",
        "recipe": "cifar-600",
        "epochs": 600,
        "steps_an_epoch": 4,
        "methods": {"plain": plain | size | memory, "sgs": sgs | size | memory},
    }
    content = {"batch": 128, "precision": "no", "rounds": 3, "steps": 2, "results": [result]}
    write(tmp_path, cost_cpu=content | {"environment": ENVIRONMENT})
    text = page.page(tmp_path)
    assert line(text, "| sgs: time of a run beside plain, VGG-16, cpu").endswith(f"| 3 | {held} |")
    assert "One update of SGS takes 0.50 of a plain epoch's time." in text
    assert "| sgs | 1." in text
    assert "2.00M / 3.0M" in text
