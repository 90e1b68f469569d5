"""Damaged files of every kind are used as they are, resumed from, or refused in one line: no traceback, no hang."""

import random
import shutil

import pytest

from backpass.__main__ import main
from fuzz.damage import damaged
from fuzz.ending import problem
from training.folders import write_folder

SMALL = ["--data.limit-train", "32", "--data.limit-test", "10", "--runtime.device", "cpu", "--runtime.workers", "0"]


RUN = ["train", *SMALL, "--epochs", "2", "--method", "sgs", "--json"]
STUDY = ["compare", *SMALL, "--epochs", "1", "--sgs.warmup", "0", "--methods", "plain", "sgs", "--seeds", "0", "--json"]
IMAGES = ["train", "--runtime.device", "cpu", "--runtime.workers", "0", "--epochs", "1", "--batch-size", "2", "--json"]
IMAGES += ["--data.limit-train", "None", "--data.limit-test", "None"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A complete run, one that has only its record to write, studies in a database and in a journal, and images."""
    root = tmp_path_factory.mktemp("originals")
    assert main([*RUN, "--out", str(root / "run")]) == 0
    shutil.copytree(root / "run", root / "unfinished")
    (root / "unfinished" / "result.json").unlink()
    assert main([*STUDY, "--out", str(root / "study")]) == 0
    assert main([*STUDY, "--out", str(root / "journal"), "--storage", f"journal:{root / 'journal' / 'log'}"]) == 0
    write_folder(root / "images", {"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 1}}, size=(8, 8))
    return root


def uses_of(place, folder):
    """Return the commands that read a file of one of the folders, for one copy of that folder."""
    return {
        "run": [[*RUN, "--out", folder], ["report", folder]],
        "unfinished": [[*RUN, "--out", folder]],
        "study": [[*STUDY, "--out", folder], ["report", folder], ["worker", "--study", folder]],
        "journal": [[*STUDY, "--out", folder, "--storage", f"journal:{folder}/log"]],
        "images": [[*IMAGES, "--data.name", f"folder:{folder}", "--out", f"{folder}-run"]],
    }[place]


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_damaged_file_ends_in_a_traceback_or_in_other_weights(count, originals, tmp_path, capsys):
    capsys.readouterr()
    generator = random.Random(23)
    files = sorted(path for path in originals.rglob("*") if path.is_file() and path.name != ".lock")
    weights = (originals / "run" / "model.safetensors").read_bytes()
    problems = []
    for number in range(count):
        original = files[number] if number < len(files) else generator.choice(files)
        place, *inner = original.relative_to(originals).parts
        folder = tmp_path / str(number)
        shutil.copytree(originals / place, folder)
        content = damaged(original.read_bytes(), generator)
        folder.joinpath(*inner).write_bytes(content)
        arguments = generator.choice(uses_of(place, str(folder)))
        found = problem(arguments, capsys)
        end = folder / "result.json"
        ended = found is None and place == "unfinished" and end.is_file()
        if ended and (folder / "model.safetensors").read_bytes() != weights:
            found = "the run ended with other weights"
        if found:
            problems.append(f"{original.relative_to(originals)}: {content[:200]!r}: {arguments[0]}: {found}")
        shutil.rmtree(folder)
        shutil.rmtree(f"{folder}-run", ignore_errors=True)
    assert problems == []
