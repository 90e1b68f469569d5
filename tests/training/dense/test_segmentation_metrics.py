import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from backpass.errors import InputError
from backpass.training.dense.segmentation_metrics import (
    SegmentationEvaluation,
    confusion_matrix,
    segmentation_scores,
)

CLASSES = 5


def scene(size=(3, 12, 9), wrong=0.4, classes=CLASSES):
    target = torch.randint(classes, size)
    other = torch.randint(CLASSES, size)
    prediction = torch.where(torch.rand(size) < wrong, other, target)
    target[torch.rand(size) < 0.2] = 255
    return prediction, target


def slow_scores(prediction, target, classes=CLASSES):
    """Count each class's pixels one by one, in plain Python."""
    pairs = [(p, t) for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True) if t != 255]
    iou, accuracy, right = [], [], 0
    for c in range(classes):
        both = sum(p == c and t == c for p, t in pairs)
        either = sum(p == c or t == c for p, t in pairs)
        labelled = sum(t == c for _, t in pairs)
        iou.append(both / (either + 1e-10))
        accuracy.append(both / (labelled + 1e-10))
        right += both
    return sum(iou) / classes, sum(accuracy) / classes, right / (len(pairs) + 1e-10)


def one_hot(prediction, classes=CLASSES):
    return torch.nn.functional.one_hot(prediction, classes).permute(0, 3, 1, 2).float()


def evaluated(parts, total=lambda counts: counts):
    evaluation = SegmentationEvaluation(CLASSES, torch.device("cpu"))
    for prediction, target in parts:
        evaluation.update(one_hot(prediction), target)
    return evaluation.compute(total)


@pytest.mark.parametrize("present", [CLASSES, 3])
def test_scores_equal_a_slow_count(present):
    prediction, target = scene(classes=present)
    scores = evaluated([(prediction, target)])
    assert list(scores.values()) == pytest.approx(slow_scores(prediction, target), rel=1e-12)
    assert 0.1 < scores["mean_iou"] < 0.9


def test_batches_and_processes_add_up():
    prediction, target = scene()
    whole = evaluated([(prediction, target)])
    assert evaluated([(prediction[:1], target[:1]), (prediction[1:], target[1:])]) == whole
    other = confusion_matrix(prediction[1:], target[1:], CLASSES)
    assert evaluated([(prediction[:1], target[:1])], total=lambda counts: counts + other) == whole
    assert evaluated([(prediction[:1], target[:1])]) != whole


def test_scores_equal_torchmetrics_where_every_class_occurs():
    prediction, target = scene()
    options = {"num_classes": CLASSES, "ignore_index": 255}
    scores = segmentation_scores(confusion_matrix(prediction, target, CLASSES)[:-1])
    expected = {
        "mean_iou": multiclass_jaccard_index(prediction, target, average="macro", **options),
        "mean_accuracy": multiclass_accuracy(prediction, target, average="macro", **options),
        "pixel_accuracy": multiclass_accuracy(prediction, target, average="micro", **options),
    }
    assert scores == pytest.approx({name: value.item() for name, value in expected.items()})


def test_a_class_that_does_not_occur_counts_as_zero():
    everything_right = torch.tensor([[4, 0, 0], [0, 4, 0], [0, 0, 0]])
    scores = segmentation_scores(everything_right)
    assert scores["mean_iou"] == pytest.approx(2 / 3)
    assert scores["mean_accuracy"] == pytest.approx(2 / 3)
    assert scores["pixel_accuracy"] == pytest.approx(1)


def test_ignored_pixels_count_nowhere():
    prediction, target = scene()
    changed = torch.where(target == 255, (prediction + 1) % CLASSES, prediction)
    assert not torch.equal(changed, prediction)
    assert evaluated([(changed, target)]) == evaluated([(prediction, target)])


@pytest.mark.parametrize("label", [CLASSES, 254, -1])
def test_labels_that_are_no_class(label):
    prediction, target = scene()
    target[0, 0, :2] = label
    with pytest.raises(InputError, match="expected labels from 0 to 4 or 255, got 2 pixels with other labels"):
        evaluated([(prediction, target)])


def test_nothing_but_ignored_pixels():
    prediction, target = scene()
    with pytest.raises(InputError, match="got none but those of label 255"):
        evaluated([(prediction, torch.full_like(target, 255))])


def test_shapes_that_do_not_fit():
    evaluation = SegmentationEvaluation(CLASSES, torch.device("cpu"))
    with pytest.raises(InputError, match=r"\(N, 5, H, W\), got \(2, 4, 8, 8\)"):
        evaluation.update(torch.zeros(2, 4, 8, 8), torch.zeros(2, 8, 8))
    with pytest.raises(InputError, match=r"got \(2, 8, 8\) and \(2, 9, 9\); resize"):
        evaluation.update(torch.zeros(2, 5, 8, 8), torch.zeros(2, 9, 9))
