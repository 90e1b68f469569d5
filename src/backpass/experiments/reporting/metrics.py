"""What the metrics are called in tables."""

from collections.abc import Iterable

__all__ = ["LABELS", "common_label", "label_of"]

LABELS = {
    "accuracy": "accuracy",
    "mean_iou": "mIoU",
    "mean_accuracy": "mAcc",
    "pixel_accuracy": "allAcc",
    "pckh": "PCKh@0.5",
    "pckh_weighted": "PCKh@0.5 over joints",
    "pck": "PCK@0.2",
    "pck_weighted": "PCK@0.2 over joints",
}
"""Label by the name that a task gives a metric."""


def label_of(metric: str) -> str:
    """Return the label of a metric; one of the user's own is called by its name.

    >>> label_of("mean_iou"), label_of("dice")
    ('mIoU', 'dice')
    """
    return LABELS.get(metric, metric)


def common_label(metrics: Iterable[str]) -> str:
    """Return the label of the metric that all of these are; where they differ, or there is none, ``result``.

    >>> common_label(["pckh", "pckh"]), common_label(["accuracy", "mean_iou"])
    ('PCKh@0.5', 'result')
    """
    found = set(metrics)
    return label_of(found.pop()) if len(found) == 1 else "result"
