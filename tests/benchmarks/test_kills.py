"""Training runs that are killed at random moments end as undisturbed ones (30 kills of each: benchmarks/kills.py)."""

import json
import random

import pytest
from benchmarks.kills import METHODS, Case, differences, kill_runs

CASES = [Case(method, precision, n) for method in METHODS for precision in ("no", "bf16") for n in (1, 2)]
QUICK = Case("sgs+pgt", "bf16", 1)


@pytest.mark.parametrize(
    ("case", "kills"),
    [pytest.param(QUICK, 1), *(pytest.param(case, 3, marks=pytest.mark.slow) for case in CASES)],
    ids=lambda value: f"{value.method}-{value.precision}-{value.processes}" if isinstance(value, Case) else str(value),
)
def test_a_killed_run_ends_as_an_undisturbed_one(case, kills, tmp_path):
    tally = kill_runs(case, kills, tmp_path, random.Random(0))
    assert tally.kills == kills
    assert tally.problems == []


def test_every_difference_is_seen(tmp_path):
    kill_runs(Case("plain", "no", 1), 0, tmp_path, random.Random(0))
    whole = tmp_path / "undisturbed"
    assert differences(whole, whole, [(whole / "metrics.jsonl").read_text()]) == []

    def altered(name, content):
        other = tmp_path / "altered"
        other.mkdir(exist_ok=True)
        for path in whole.iterdir():
            (other / path.name).write_bytes(path.read_bytes())
        (other / name).write_bytes(content)
        (difference,) = differences(whole, other, [])
        (other / name).unlink()
        return difference

    record = json.loads((whole / "result.json").read_text())
    record["history"][2]["train_loss"] += 1e-9
    assert "expected train_loss of epoch 2 to be" in altered("result.json", json.dumps(record).encode())
    record["history"][2]["train_loss"] = json.loads((whole / "result.json").read_text())["history"][2]["train_loss"]
    record["scalings"] = {"conv": [1.0]}
    assert "scalings" in altered("result.json", json.dumps(record).encode())
    weights = bytearray((whole / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    assert "weights" in altered("model.safetensors", bytes(weights))
    assert "expected the files" in altered(".checkpoint.pt." + "0" * 32, b"half")
    assert "trained again" in differences(whole, whole, ["another epoch"])[0]
