import json

import pytest
import torch
from scipy.io import savemat

from backpass.errors import InputError
from backpass.training.dense.mpii import MPII_JOINTS, MPII_PAIRS, mpii
from training.dense.people import ground_truth, write_mpii


@pytest.fixture
def root(tmp_path):
    write_mpii(tmp_path)
    return tmp_path


def change(root, number, **values):
    file = root / "annot" / "train.json"
    records = json.loads(file.read_text())
    records[number] |= values
    file.write_text(json.dumps(records))
    return file


def test_persons(root):
    records = write_mpii(root, seed=1)
    data = mpii(root, "train")
    assert len(data.persons) == 3
    assert data.truth is None
    for person, record in zip(data.persons, records, strict=True):
        assert person.image == str(root / "images" / record["image"])
        assert person.center == pytest.approx((60 - 1, 45 + 15 * 0.4 - 1))
        assert person.side == pytest.approx(0.4 * 1.25 * 200)
        torch.testing.assert_close(person.joints, torch.tensor(record["joints"]) - 1)
        assert person.visible.tolist() == [bool(value) for value in record["joints_vis"]]


def test_ground_truth(root):
    records = write_mpii(root, seed=1)
    truth = mpii(root, "valid").truth
    for n, record in enumerate(records):
        torch.testing.assert_close(truth.joints[n], torch.tensor(record["joints"], dtype=torch.float64) - 1)
        assert truth.visible[n].tolist() == [bool(value) for value in record["joints_vis"]]
    expected = [0.6 * ((3.0 + n) ** 2 + 16) ** 0.5 for n in range(3)]
    assert truth.sizes.tolist() == pytest.approx(expected)


def test_left_and_right():
    for right, left in MPII_PAIRS:
        assert MPII_JOINTS[right].replace("right", "left") == MPII_JOINTS[left]
    assert len(MPII_JOINTS) == 16


def test_missing_files(root):
    with pytest.raises(InputError, match=r"expected the annotation .*test.json, got none; correct"):
        mpii(root, "test")
    image = root / "images" / "000000001.jpg"
    image.unlink()
    with pytest.raises(InputError, match=f"got none at {image} and 0 others; unpack"):
        mpii(root, "train")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{", "to be JSON, got Expecting"),
        ("{}", "to be a list of persons"),
        ("[]", r"to be a list of persons, got \[\]"),
    ],
)
def test_annotation_that_is_something_else(root, text, words):
    file = root / "annot" / "train.json"
    file.write_text(text)
    with pytest.raises(InputError, match=f"expected {file} {words}"):
        mpii(root, "train")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"joints": [[1, 2]] * 15}, r"to have joints of shape \(16, 2\) .*, got \(15, 2\) and \(16,\)"),
        ({"joints_vis": [1] * 14}, r"got \(16, 2\) and \(14,\)"),
        ({"joints": None}, "to have image, center, scale, joints and joints_vis, got"),
        ({"center": [5]}, "to have image, center, scale"),
        ({"scale": "big"}, "to have image, center, scale"),
        ({"scale": 0}, r"a center and a scale above 0, got \(60, 45\) and 0"),
        ({"center": [-1, -1]}, r"got \(-1, -1\) and 0.4"),
    ],
)
def test_a_person_that_is_something_else(root, values, words):
    file = change(root, 1, **values)
    with pytest.raises(InputError, match=f"expected person 1 of {file} .*{words}"):
        mpii(root, "train")


def test_a_person_without_a_key(root):
    file = root / "annot" / "train.json"
    records = json.loads(file.read_text())
    del records[2]["scale"]
    file.write_text(json.dumps(records))
    with pytest.raises(InputError, match=r"expected person 2 of .*KeyError: 'scale'"):
        mpii(root, "train")


def test_ground_truth_of_other_persons(root):
    records = write_mpii(root, count=3)
    savemat(root / "annot" / "gt_valid.mat", ground_truth(records[:2]))
    with pytest.raises(InputError, match=r"jnt_missing of .*gt_valid.mat to have shape \(16, 3\), .*got \(16, 2\)"):
        mpii(root, "valid")


def test_ground_truth_that_is_something_else(root):
    file = root / "annot" / "gt_valid.mat"
    arrays = ground_truth(write_mpii(root))
    savemat(file, {name: array for name, array in arrays.items() if name != "headboxes_src"})
    with pytest.raises(InputError, match=f"expected {file} to hold dataset_joints, .*without headboxes_src; replace"):
        mpii(root, "valid")
    arrays["headboxes_src"][:, :, 1] = 7
    savemat(file, arrays)
    with pytest.raises(InputError, match=f"diagonal above 0, .*for person 1; .*in {file}"):
        mpii(root, "valid")
    arrays["dataset_joints"][0, [0, 5]] = arrays["dataset_joints"][0, [5, 0]]
    savemat(file, arrays)
    with pytest.raises(InputError, match=f"expected the joints .* in {file}, got"):
        mpii(root, "valid")
    for content in (b"no matlab", file.read_bytes()[:300]):
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"expected {file} to be a readable MATLAB file, got .*; replace"):
            mpii(root, "valid")
