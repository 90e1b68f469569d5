"""MPII and LSP in small, in the exact formats."""

import json

import numpy
from PIL import Image
from scipy.io import savemat

NAMES = (
    *("rank", "rkne", "rhip", "lhip", "lkne", "lank", "pelv", "thor", "neck", "head"),
    *("rwri", "relb", "rsho", "lsho", "lelb", "lwri"),
)


def write_mpii(root, count=3, size=(120, 90), seed=0):
    """Write ``count`` persons in images of ``size`` (width, height), one to each; return their records."""
    numbers = numpy.random.default_rng(seed)
    (root / "annot").mkdir(parents=True, exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    records = []
    for number in range(count):
        name = f"{number:09d}.jpg"
        Image.fromarray(numbers.integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)).save(root / "images" / name)
        visible = (numbers.random(16) < 0.8).astype(int)
        visible[[3, 10]] = 1, 0
        joints = numpy.where(visible[:, None], numbers.uniform([20, 20], [size[0] - 20, size[1] - 20], (16, 2)), -1)
        records.append(
            {
                "image": name,
                "center": [size[0] / 2, size[1] / 2],
                "scale": 0.4,
                "joints": joints.tolist(),
                "joints_vis": visible.tolist(),
            }
        )
    for split in ("train", "valid"):
        (root / "annot" / f"{split}.json").write_text(json.dumps(records))
    savemat(root / "annot" / "gt_valid.mat", ground_truth(records))
    return records


def ground_truth(records):
    """Return the arrays of ``gt_valid.mat``: names as cells, people along the last axis, 1-based pixels."""
    names = numpy.empty((1, 16), dtype=object)
    names[0] = NAMES
    joints = numpy.array([record["joints"] for record in records])
    boxes = numpy.array([[[10.0, 10.0], [13.0 + n, 14.0]] for n in range(len(records))])
    return {
        "dataset_joints": names,
        "jnt_missing": 1 - numpy.array([record["joints_vis"] for record in records], dtype=numpy.uint8).T,
        "pos_gt_src": joints.transpose(1, 2, 0),
        "headboxes_src": boxes.transpose(1, 2, 0),
    }


def write_lsp(root, count=5, size=(90, 70), seed=0):
    """Write ``count`` persons with all joints in images of ``size`` (width, height); return joints.mat's array."""
    numbers = numpy.random.default_rng(seed)
    (root / "images").mkdir(parents=True, exist_ok=True)
    joints = numpy.ones((14, 3, count))
    joints[:, :2] = numbers.uniform(5, 65, (14, 2, count))
    for number in range(count):
        pixels = numbers.integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(root / "images" / f"im{number + 1:05d}.jpg")
    savemat(root / "joints.mat", {"joints": joints})
    return joints
