"""Reliability diagrams at the logits z and, for models trained with PGT, at alpha * z."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.experiments.reporting.drawing.canvas import new_figure, plain_text, style
from backpass.experiments.reporting.drawing.groups import Group

__all__ = ["draw_reliability"]

_COLUMNS = 3
_FEW = 0.01


def draw_reliability(groups: Sequence[Group]) -> Any:
    """Return a panel for each group: accuracy over probability (above) and the fraction of images in each bin (below).

    Of the most probable class after the last epoch, in 15 bins of equal width, over the images of all seeds together. A
    calibrated model lies on the diagonal; the expected calibration error (ECE) is the mean distance from it. A hollow
    marker stands for less than 1 % of the images. Where runs differ in their split, each panel names it.

    Raises:
        InputError: no run has traces of its bins.
    """
    shown = [group for group in groups if all(record.traces.reliability for record in group.records)]
    if not shown:
        raise InputError("expected runs with reliability bins, got none; train classifiers with runtime.traces")
    columns = min(len(shown), _COLUMNS)
    rows = -(-len(shown) // columns)
    figure = new_figure(3.3 * columns, 4.3 * rows)
    cells = figure.subfigures(rows, columns, squeeze=False).ravel()
    splits = list(dict.fromkeys(_split(group) for group in shown))
    for cell, group in zip(cells, shown, strict=False):
        above, below = cell.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        _draw(group, above, below)
        title = f"{group.label}\n{_split(group)} images" if len(splits) > 1 else group.label
        above.set_title(plain_text(title), fontsize=10)
    subjects = ", ".join(dict.fromkeys(group.subject for group in shown))
    figure.suptitle(plain_text(f"{subjects}, {' and '.join(splits)} images"), fontsize=10)
    return figure


def _split(group: Group) -> str:
    return group.records[0].data.split


def _draw(group: Group, above: Any, below: Any) -> None:
    for axes in (above, below):
        axes.set_xlim(0, 1)
        axes.grid(alpha=0.25)
    above.plot([0, 1], [0, 1], color="0.5", linewidth=0.9, linestyle=":")
    at_alpha = rf"$\alpha z$, $\alpha$ = {group.settings.get('pgt.alpha')}"
    for number, (suffix, name) in enumerate((("", "$z$"), ("_at_alpha", at_alpha))):
        found = [torch.tensor(r.traces.reliability[suffix]) for r in group.records if suffix in r.traces.reliability]
        if not found:
            continue
        count, confidence, accuracy = _pooled(found)
        filled = count > 0
        error = float((count * (accuracy - confidence)).abs().sum() / count.sum())
        look = style(number)
        label = f"{name}: ECE {100 * error:.1f} %"
        above.plot(confidence[filled].tolist(), accuracy[filled].tolist(), label=label, clip_on=False, **look)
        few = filled & ~(count >= _FEW * count.sum())
        hollow = look | {"linestyle": "none", "markersize": 5.0, "markerfacecolor": "white"}
        if bool(few.any()):  # without any, the unclipped points would have no extent for the layout
            above.plot(confidence[few].tolist(), accuracy[few].tolist(), clip_on=False, **hollow)
        edges = torch.linspace(0, 1, len(count) + 1).tolist()
        below.stairs((100 * count / count.sum()).tolist(), edges, color=look["color"], linewidth=1.4)
    above.set(ylim=(0, 1), ylabel="accuracy")
    above.legend(frameon=False, fontsize=8, loc="upper left")
    below.set(xlabel="probability of the predicted class", ylabel="images, %")


def _pooled(bins: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bins of several runs together: numbers of images, mean probability and accuracy."""
    count = torch.stack([run[0] for run in bins]).sum(0)
    sums = torch.stack([run[0] * run[1:] for run in bins]).sum(0)
    confidence, accuracy = sums / count.clamp(min=1)
    return count, confidence, accuracy
