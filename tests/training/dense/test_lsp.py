import re

import numpy
import pytest
import torch
from examples.generated_scenes.models import small_heatmaps
from scipy.io import savemat

from backpass.errors import InputError
from backpass.training import DataSettings, Recipe, Run, Runtime, SgsSettings, Trainer, import_path
from backpass.training.datasets import load_dataset
from backpass.training.dense.lsp import LSP_JOINTS, LSP_PAIRS, LSP_TORSO, lsp
from training.dense.people import write_lsp


@pytest.fixture
def root(tmp_path):
    write_lsp(tmp_path)
    return tmp_path


def change(root, person, joint, values):
    """Write another x, y and visibility; return the file."""
    joints = write_lsp(root)
    joints[joint, :, person] = values
    savemat(root / "joints.mat", {"joints": joints})
    return root / "joints.mat"


def test_persons(root):
    stored = write_lsp(root, seed=1)
    train, test = lsp(root, "train", held_out=2), lsp(root, "test", held_out=2)
    assert (len(train), len(test)) == (3, 2)
    for number, person in enumerate((*train.persons, *test.persons)):
        places = stored[:, :2, number]
        assert person.image == str(root / "images" / f"im{number + 1:05d}.jpg")
        torch.testing.assert_close(person.joints, torch.from_numpy(places).float())
        low, high = places.min(0), places.max(0)
        assert person.center == pytest.approx(tuple((low + high) / 2))
        assert person.side == pytest.approx(1.25 * max(high - low))
        assert person.visible.all()
    torsos = [numpy.linalg.norm(stored[2, :2, number] - stored[9, :2, number]) for number in (3, 4)]
    assert test.truth.sizes.tolist() == pytest.approx(torsos)
    assert test.truth.visible.all()
    torch.testing.assert_close(test.truth.joints, torch.from_numpy(stored[:, :2, 3:]).movedim(-1, 0))


def test_joints_that_are_not_annotated(root):
    """They lie anywhere, such as outside the image, and count neither for the region nor as the torso."""
    change(root, 4, 13, (0, -500, 0))
    person = lsp(root, "test", held_out=1).persons[0]
    assert person.visible.tolist() == [True] * 13 + [False]
    assert person.side < 100
    change(root, 4, 2, (0, -500, 0))
    files = lsp(root, "test", held_out=2)
    assert files.truth.visible.any(1).tolist() == [True, False]
    assert files.truth.sizes[1] == 1


def test_left_and_right():
    for right, left in LSP_PAIRS:
        assert LSP_JOINTS[right].replace("right", "left") == LSP_JOINTS[left]
    assert sorted(joint for pair in LSP_PAIRS for joint in pair) == list(range(12))
    assert [LSP_JOINTS[joint] for joint in LSP_TORSO] == ["right hip", "left shoulder"]


def test_the_data_set_in_the_loop(root):
    """Training and evaluation, with the metric of the data set."""
    data = load_dataset(f"lsp:{root}", arguments={"held_out": 2})
    recipe = Recipe(
        task="keypoints",
        task_args=(("size", 32), ("sigma", 1.0)),
        model=import_path(small_heatmaps),
        data=DataSettings(name=f"lsp:{root}"),
        epochs=1,
        batch_size=3,
        sgs=SgsSettings(warmup=0, every=1, batches=1),
    )
    trainer = Trainer(Run(recipe, "sgs"), data, runtime=Runtime(device="cpu", workers=0))
    (record,) = trainer.fit().history
    assert trainer.task.metric == "pck"
    assert {name for name in record if "pck" in name} == {"test_pck", "test_pck_weighted"}
    assert 0 <= record["test_pck"] <= 1
    with pytest.raises(InputError, match=r"expected the metric of LSP extended, pck, .* got 'pckh'; leave it out"):
        Trainer(Run(Recipe(task="keypoints", task_args=(("metric", "pckh"),))), data, runtime=Runtime(device="cpu"))


def test_missing_files(root):
    image = root / "images" / "im00005.jpg"
    image.unlink()
    with pytest.raises(InputError, match=f"got none at {image} and 0 others; unpack"):
        lsp(root, "test", held_out=2)
    assert len(lsp(root, "train", held_out=2).persons) == 3
    (root / "joints.mat").unlink()
    with pytest.raises(InputError, match=f"expected the annotation {root / 'joints.mat'}, got none; correct"):
        lsp(root, "train")


@pytest.mark.parametrize(
    ("joints", "words"),
    [
        (numpy.ones((3, 14, 5)), r"numbers of shape \(14, 3, N\), got .* of shape \(3, 14, 5\); take .* extended"),
        (numpy.ones((14, 3)), r"got .* of shape \(14, 3\)"),
        (numpy.full((14, 3, 5), 2.0), "finite, with 0 or 1 in the third row"),
        (numpy.full((14, 3, 5), numpy.nan), "finite, with 0 or 1 in the third row"),
    ],
)
def test_joints_that_are_something_else(root, joints, words):
    savemat(root / "joints.mat", {"joints": joints})
    with pytest.raises(InputError, match=f"expected joints of {root / 'joints.mat'} .*{words}"):
        lsp(root, "train", held_out=2)


def test_a_file_that_is_something_else(root):
    file = root / "joints.mat"
    savemat(file, {"points": numpy.ones((14, 3, 5))})
    with pytest.raises(InputError, match=re.escape(f"expected {file} to hold joints, got ['points'] without joints")):
        lsp(root, "train")
    file.write_bytes(b"no matlab")
    with pytest.raises(InputError, match=f"expected {file} to be a readable MATLAB file"):
        lsp(root, "train")


def test_a_person_without_a_region(root):
    file = change(root, 1, slice(1, 14), numpy.array([3.0, 4.0, 0.0]))
    with pytest.raises(InputError, match=f"joints at different places in person 2 of {file}, got .*leave"):
        lsp(root, "train", held_out=2)


@pytest.mark.parametrize(("split", "held_out"), [("valid", 1), ("test", 0), ("test", 5)])
def test_unknown_arguments(root, split, held_out):
    with pytest.raises(InputError, match=f"held_out from 1 to 4, .* got '{split}' and {held_out}; choose"):
        lsp(root, split, held_out)
