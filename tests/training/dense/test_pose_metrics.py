import math
from pathlib import Path

import numpy
import pytest
import torch

from backpass.errors import InputError
from backpass.training.dense.pose_metrics import (
    PckEvaluation,
    head_sizes,
    joint_errors,
    pck,
    pck_counts,
    torso_sizes,
)

# The distances of published predictions from the ground truth of 2,958 persons of MPII (bearpaw/pytorch-pose,
# evaluation/data/detections_our_format.mat) in head sizes: floor(20 * distance), at most 20, and 255 where a joint is
# not annotated. None lies at 0.5 exactly.
ORACLE = Path(__file__).parents[2] / "reference" / "mpii_errors.npz"
ORACLE_JOINTS = [65.201, 73.441, 82.001, 81.856, 73.285, 65.691, 97.715, 95.600]
ORACLE_JOINTS += [76.400, 83.373, 92.154, 93.274, 83.356, 77.071]
ORACLE_MEAN, ORACLE_WEIGHTED, ORACLE_COUNT = 81.458, 82.337, 38_430


def persons(errors, visible):
    """Place joints and head boxes at random, with predictions at the given distances in random directions."""
    count = len(errors)
    corners = torch.rand(count, 2, 2, dtype=torch.float64) * 300
    corners[:, 1] = corners[:, 0] + 20 + 50 * torch.rand(count, 2, dtype=torch.float64)
    sides = corners[:, 1] - corners[:, 0]
    unit = 0.6 * (sides[:, 0] ** 2 + sides[:, 1] ** 2).sqrt()
    truth = torch.rand(*errors.shape, 2, dtype=torch.float64) * 600
    angle = torch.rand(errors.shape, dtype=torch.float64) * 6.3
    step = torch.stack([angle.cos(), angle.sin()], -1) * (errors * unit[:, None])[..., None]
    return truth + step, truth, visible, head_sizes(corners)


def oracle():
    codes = torch.from_numpy(numpy.load(ORACLE)["errors"])
    return persons((codes.double() + 0.5) / 20, codes < 255)


def evaluated(parts, total=lambda counts: counts):
    evaluation = PckEvaluation(16, torch.device("cpu"))
    for part in parts:
        evaluation.update(*part)
    return evaluation.compute(total)


def test_both_variants_on_published_predictions():
    prediction, truth, visible, sizes = oracle()
    counts = pck_counts(joint_errors(prediction, truth, sizes), visible)
    joints, mean, weighted = pck(counts)
    kept = [joint for joint in range(16) if joint not in (6, 7)]
    assert (100 * joints[kept]).tolist() == pytest.approx(ORACLE_JOINTS, abs=6e-4)
    assert 100 * mean.item() == pytest.approx(ORACLE_MEAN, abs=6e-4)
    assert 100 * weighted.item() == pytest.approx(ORACLE_WEIGHTED, abs=6e-4)
    assert int(counts[0, kept].sum()) == ORACLE_COUNT


def test_batches_and_processes_add_up():
    people = oracle()
    whole = evaluated([people])
    assert 100 * whole["pckh"] == pytest.approx(ORACLE_MEAN, abs=6e-4)
    assert 100 * whole["pckh_weighted"] == pytest.approx(ORACLE_WEIGHTED, abs=6e-4)
    parts = list(zip(*(tensor.split(1000) for tensor in people), strict=True))
    assert evaluated(parts) == whole
    prediction, truth, visible, sizes = parts[2]
    rest = pck_counts(joint_errors(prediction, truth, sizes), visible)
    assert evaluated(parts[:2], total=lambda counts: counts + rest) == whole
    assert evaluated(parts[:2]) != whole


def test_the_variants_by_hand():
    """Joint 0 is visible twice, once at the threshold exactly; joint 1 once, and wrong; joint 2 nowhere."""
    sizes = head_sizes(torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[1.0, 1.0], [7.0, 9.0]]]))
    assert sizes.tolist() == [3, 6]
    truth = torch.zeros(2, 3, 2)
    prediction = torch.tensor([[[1.0, 0.0], [0.0, 9.0], [0.0, 0.0]], [[0.0, 3.0], [0.0, 0.0], [0.0, 0.0]]])
    visible = torch.tensor([[True, True, False], [True, False, False]])
    joints, mean, weighted = pck(pck_counts(joint_errors(prediction, truth, sizes), visible), not_scored=())
    assert joints[:2].tolist() == [0.5, 0.0]
    assert joints[2].isnan()
    assert mean.item() == 0.25
    assert weighted.item() == pytest.approx(2 / 3)


def test_joints_that_are_not_annotated_count_nowhere():
    prediction, truth, visible, sizes = oracle()
    moved = torch.where(visible.unsqueeze(-1), prediction, truth + 1e4)
    assert evaluated([(moved, truth, visible, sizes)]) == evaluated([(prediction, truth, visible, sizes)])
    assert evaluated([(truth + 1e4, truth, visible, sizes)])["pckh"] == 0


def test_a_head_box_without_a_diagonal():
    boxes = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[5.0, 6.0], [5.0, 6.0]]])
    with pytest.raises(InputError, match=r"got \[\[5.0, 6.0\], \[5.0, 6.0\]\] for person 1"):
        head_sizes(boxes)


def test_no_visible_joint():
    prediction, truth, visible, sizes = oracle()
    with pytest.raises(InputError, match=r"expected visible joints other than \(6, 7\) to score, got none"):
        evaluated([(prediction, truth, torch.zeros_like(visible), sizes)])


def test_pck_by_a_slow_reference():
    """Right means strictly below a fifth of the distance between right hip and left shoulder."""
    generator = torch.Generator().manual_seed(4)
    truth = 100 * torch.rand(40, 14, 2, generator=generator, dtype=torch.float64)
    prediction = truth + 15 * torch.randn(40, 14, 2, generator=generator, dtype=torch.float64)
    visible = torch.rand(40, 14, generator=generator) < 0.8
    sizes = torso_sizes(truth, visible, (2, 9))
    scored = visible & (sizes > 0).unsqueeze(1)
    right, seen = [0] * 14, [0] * 14
    for person in range(40):
        if not (visible[person, 2] and visible[person, 9]):
            assert sizes[person] == 0
            continue
        torso = math.dist(truth[person, 2].tolist(), truth[person, 9].tolist())
        for joint in range(14):
            if visible[person, joint]:
                distance = math.dist(prediction[person, joint].tolist(), truth[person, joint].tolist())
                seen[joint] += 1
                right[joint] += distance < 0.2 * torso
    evaluation = PckEvaluation(14, torch.device("cpu"), "pck", not_scored=())
    for rows in (slice(0, 15), slice(15, 40)):
        units = torch.where(sizes > 0, sizes, 1.0)[rows]
        evaluation.update(prediction[rows], truth[rows], scored[rows], units)
    found = evaluation.compute(lambda counts: counts)
    assert 0.2 < found["pck"] < 0.8
    expected = {
        "pck": sum(r / n for r, n in zip(right, seen, strict=True)) / 14,
        "pck_weighted": sum(right) / sum(seen),
    }
    assert found == pytest.approx(expected)
