"""Curves over epochs: accuracy in training and testing; norms of logits and gradients (PGT paper)."""

from collections.abc import Sequence
from typing import Any

import torch

from backpass.errors import InputError
from backpass.experiments.reporting.drawing.canvas import band, legend, new_figure, plain_text
from backpass.experiments.reporting.drawing.groups import Group

__all__ = ["draw_curves", "draw_logit_norms"]


def draw_curves(groups: Sequence[Group]) -> Any:
    """Return training accuracy (left) and test or validation accuracy (right) by epoch.

    For another task, its headline metric; runs of several metrics have a panel for each, and so have runs that were
    evaluated on several splits. Lines are means over seeds, bands the range over seeds. Training accuracy is over the
    augmented batches of the epoch, each as the model was before its step. Runs without one are on the right alone.
    """
    metrics = {group.records[0].metric: group.metric for group in groups}
    evaluated = {(group.records[0].data.split, group.records[0].metric): group.metric for group in groups}
    training = {f"train_{metric}": f"training {label}, %" for metric, label in metrics.items()}
    panels = [(key, label) for key, label in training.items() if any(_by_epoch(g, key) for g in groups)]
    panels += [(f"{split}_{metric}", f"{split} {label}, %") for (split, metric), label in evaluated.items()]
    figure = _panels(groups, panels, 100.0)
    for axes in figure.axes[1:]:
        axes.sharey(figure.axes[0])
    return figure


def draw_logit_norms(groups: Sequence[Group]) -> Any:
    """Return the norm and the spread of the logits and the norm of the gradient by epoch, on training batches.

    The Euclidean norm of an image's logits, their standard deviation over the classes, both as means over images, and
    the Euclidean norm of the loss's gradient, as a mean over steps. Lines are means over seeds, bands their range.

    Raises:
        InputError: no run has traces of its logits.
    """
    if not any("train_logit_norm" in group.records[0].history[0] for group in groups):
        raise InputError("expected runs with norms of their logits, got none; train them with runtime.traces")
    panels = (
        ("train_logit_norm", "norm of the logits"),
        ("train_logit_spread", "std of the logits over classes"),
        ("train_gradient_norm", "norm of the gradient"),
    )
    return _panels(groups, panels, 1.0)


def _panels(groups: Sequence[Group], panels: Sequence[tuple[str, str]], factor: float) -> Any:
    figure = new_figure(3.9 * len(panels), 3.4)
    for axes, (name, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, group in enumerate(groups):
            by_epoch = _by_epoch(group, name)
            if by_epoch:
                values = torch.tensor(list(by_epoch.values())).T
                band(axes, number, group.label, factor * values, list(by_epoch))
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    legend(figure)
    figure.suptitle(plain_text(", ".join(dict.fromkeys(group.subject for group in groups))), fontsize=10)
    return figure


def _by_epoch(group: Group, name: str) -> dict[int, list[float]]:
    """Return a metric of each run by epoch, counted from 1, for the epochs in which all of them have it."""
    epochs = zip(*(record.history for record in group.records), strict=False)
    found = {number: [epoch[name] for epoch in runs if name in epoch] for number, runs in enumerate(epochs, 1)}
    return {number: values for number, values in found.items() if len(values) == len(group.records)}
