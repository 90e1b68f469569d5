"""People of dots and lines in the format of MPII."""

import json
from pathlib import Path

import numpy
from PIL import Image, ImageDraw
from scipy.io import savemat

NAMES = (
    *("rank", "rkne", "rhip", "lhip", "lkne", "lank", "pelv", "thor", "neck", "head"),
    *("rwri", "relb", "rsho", "lsho", "lelb", "lwri"),
)
# x and y of each joint as fractions of the person's height, from the pelvis; the person's right is on the left.
POSE = numpy.array(
    [
        *([-0.18, 0.48], [-0.14, 0.25], [-0.09, 0.02], [0.09, 0.02], [0.14, 0.25], [0.18, 0.48]),
        *([0, 0], [0, -0.28], [0, -0.33], [0, -0.5]),
        *([-0.3, -0.02], [-0.25, -0.15], [-0.14, -0.28], [0.14, -0.28], [0.25, -0.15], [0.3, -0.02]),
    ]
)
LINES = (
    (0, 1),
    (1, 2),
    (2, 6),
    (6, 3),
    (3, 4),
    (4, 5),
    (6, 7),
    (7, 8),
    (8, 9),
    (10, 11),
    (11, 12),
    (12, 13),
    (13, 14),
    (14, 15),
)
# One colour for the joints of both sides: a mirrored person is a person.
COLOURS = ("red", "orange", "yellow", "yellow", "orange", "red", "white", "gray", "pink", "magenta")
COLOURS += ("cyan", "blue", "green", "green", "blue", "cyan")
SIDE = 96


def person(numbers: numpy.random.Generator) -> tuple[Image.Image, numpy.ndarray, float]:
    """Return an image with one person, x and y of the joints counted from 0, and the person's height in pixels."""
    image = Image.fromarray(numbers.integers(0, 90, (SIDE, SIDE, 3), dtype=numpy.uint8))
    height = numbers.uniform(52, 64)
    joints = (POSE + numbers.normal(0, 0.02, POSE.shape)) * height + SIDE / 2 + numbers.uniform(-4, 4, 2)
    draw = ImageDraw.Draw(image)
    for start, end in LINES:
        draw.line([tuple(joints[start]), tuple(joints[end])], fill="gray", width=2)
    for (x, y), colour in zip(joints, COLOURS, strict=True):
        draw.ellipse([x - 2.5, y - 2.5, x + 2.5, y + 2.5], fill=colour)
    return image, joints, height


def write_people(root: Path, train: int, valid: int) -> None:
    """Write generated persons below ``annot`` and ``images``; pixels count from 1 there."""
    numbers = numpy.random.default_rng(0)
    for folder in ("annot", "images"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("valid", valid)):
        records, boxes = [], []
        for index in range(count):
            image, joints, height = person(numbers)
            name = f"{split}{index:06d}.jpg"
            image.save(root / "images" / name, quality=95)
            scale = height / 200
            center = (joints.min(0) + joints.max(0)) / 2 + 1 - [0, 15 * scale]
            seen = [1] * len(NAMES)
            if index % 4 == 3:
                seen[index % 16] = 0
            records.append(
                {
                    "image": name,
                    "center": center.tolist(),
                    "scale": scale,
                    "joints": (joints + 1).tolist(),
                    "joints_vis": seen,
                }
            )
            half = 0.08 * height
            boxes.append([[joints[9][0] - half, joints[9][1]], [joints[9][0] + half, joints[8][1]]])
        (root / "annot" / f"{split}.json").write_text(json.dumps(records))
        names = numpy.empty((1, len(NAMES)), dtype=object)
        names[0] = NAMES
        truth = {
            "dataset_joints": names,
            "jnt_missing": 1 - numpy.array([record["joints_vis"] for record in records], dtype=numpy.uint8).T,
            "pos_gt_src": numpy.array([record["joints"] for record in records]).transpose(1, 2, 0),
            "headboxes_src": numpy.array(boxes).transpose(1, 2, 0),
        }
        if split == "valid":
            savemat(root / "annot" / "gt_valid.mat", truth)
