"""Every example runs, and marks what backpass adds or changes: three lines, or as many as are given here and why."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
NEEDS = {
    "lightning_callback": "lightning",
    "hugging_face": "transformers",
    "timm_train": "timm.task",
    "detection": "torchvision",
    "accelerate_two_processes": "accelerate",
}
# Lines marked beside imports; 3 unless given: construct, start_epoch, scale_gradients.
CHANGED = {
    "plain_pytorch": 4,  # both methods: the loss too
    "timm_train": 4,  # both methods, and the loss scaler instead of the call
    "hugging_face": 2,
    "accelerate_two_processes": 4,  # the checkpoint too
    "distillation": 1,  # PGT alone
    "segmentation_and_pose": 0,  # the trainer calls backpass
    "deploy": 0,  # it is about what comes after training
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "BackpassWarning" not in done.stderr
    assert "NoEffectWarning" not in done.stderr
    if path.stem == "deploy":
        differences = dict(re.findall(r"^(\w+) ([\d.e-]+)$", done.stdout, re.MULTILINE))
        assert {"fused", "plain", "exported"} <= differences.keys()
        assert ("onnx" in differences) == all(map(importlib.util.find_spec, ("onnxruntime", "onnxscript")))
        assert all(float(difference) < 1e-4 for difference in differences.values())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_changed_lines_are_marked_and_few(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    marked = [line for line in lines if "# backpass" in line and not re.match(r"(import|from|\"\"\") ?", line)]
    assert len(marked) == CHANGED.get(path.stem, 3)
