import importlib.util
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backpass.experiments import environment
from backpass.training.recipe import Runtime

FILE = Path(environment.__file__)


def git(folder, *words):
    settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *settings, *words], check=True, capture_output=True)


@pytest.fixture
def copied(tmp_path):
    """The module, from a copy of its file in a new repository that ignores it until it is added."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    path = tmp_path / ".venv" / "backpass" / FILE.name
    path.parent.mkdir(parents=True)
    shutil.copy(FILE, path)
    (tmp_path / ".gitignore").write_text(".venv\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "-m", "first")
    specification = importlib.util.spec_from_file_location("copied_environment", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_an_installed_package_has_no_commit_inside_a_users_repository(copied):
    assert copied.environment(Runtime(device="cpu")).commit is None


def test_a_source_tree_has_its_commit_and_whether_it_was_altered(copied):
    path = Path(copied.__file__)
    git(path.parent, "add", "--force", path.name)
    git(path.parent, "commit", "-m", "second")
    commit = copied.environment(Runtime(device="cpu")).commit
    assert len(commit) == 12
    path.write_text(path.read_text() + "\n")
    assert copied.environment(Runtime(device="cpu")).commit == f"{commit}+"


def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_names_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a gpu")
    found = [
        environment.environment(runtime, device).accelerator
        for runtime in (Runtime(), Runtime(device="cpu"))
        for device in (None, torch.device("cuda", 0), torch.device("cpu"))
    ]
    assert found == ["a gpu", "a gpu", None, None, "a gpu", None]


def test_hardware_of_a_run_that_moved_is_named_once_and_in_one_order():
    first = replace(environment.environment(Runtime(device="cpu")), cpu="A", accelerator=None)
    second, third = replace(first, cpu="B", accelerator="G"), replace(first, cpu="C")
    there = third.after(second.after(first))
    assert (there.hardware, there.earlier) == ("C, earlier A, B and G", ("A", "B and G"))
    back = first.after(second.after(first))
    assert (back.hardware, back.earlier) == ("A, earlier B and G", ("B and G",))
    assert first.after(first) == first
    newer = replace(first, commit="b" * 12, versions=first.versions | {"torch": "99.0"}, threads=first.threads + 1)
    resumed = newer.after(first)
    assert {f"torch {first.versions['torch']}", f"threads {first.threads}"} <= set(resumed.earlier_software)
    assert len(resumed.earlier_software) == 2 + (first.commit is not None)
    assert first.after(resumed).earlier_software == tuple(
        sorted([f"commit {'b' * 12}", "torch 99.0", f"threads {first.threads + 1}"])
    )
