"""Static pictures of results: the figures of the papers from any runs, and the report's, as SVG text."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backpass.errors import InputError
from backpass.experiments.record import Record
from backpass.experiments.reporting.drawing.canvas import check_format, save_figure
from backpass.experiments.reporting.drawing.curves import draw_curves, draw_logit_norms
from backpass.experiments.reporting.drawing.family import draw_family
from backpass.experiments.reporting.drawing.groups import group_records
from backpass.experiments.reporting.drawing.k_curve import draw_k_curve
from backpass.experiments.reporting.drawing.kernel_magnitude import draw_kernel_magnitude
from backpass.experiments.reporting.drawing.norm_weights import draw_norm_weights
from backpass.experiments.reporting.drawing.reliability import draw_reliability
from backpass.experiments.reporting.drawing.scalings import draw_scalings

__all__ = ["FIGURES", "Figure", "heat_map", "learning_curves", "scaling_pictures", "value_curve", "write_figure"]


@dataclass(frozen=True)
class Figure:
    """A figure by name.

    Attributes:
        title: what it shows, and the figure of the paper that it is.
        draw: makes it from groups of records.
        layers: whether it shows a few layers, which can be chosen.
        runs: whether it needs runs.
    """

    title: str
    draw: Callable[..., Any]
    layers: bool = False
    runs: bool = True


FIGURES: dict[str, Figure] = {
    "scalings": Figure(
        "scalings of layers at the start and the end of training (SGS Figures 4, 5)", draw_scalings, layers=True
    ),
    "kernel-magnitude": Figure(
        "mean kernel magnitude with and without SGS, and the scaling (SGS Figure 6)", draw_kernel_magnitude, layers=True
    ),
    "family": Figure("fixed scalings by alpha and beta (SGS Figure 7)", draw_family, runs=False),
    "k-curve": Figure("accuracy over k relative to the baseline (SGS Figure 8)", draw_k_curve),
    "curves": Figure("training and test accuracy by epoch", draw_curves),
    "logit-norms": Figure("norms of logits and gradients by epoch", draw_logit_norms),
    "reliability": Figure("reliability diagram at z and alpha * z", draw_reliability),
    "norm-weights": Figure("weights of normalisation layers after training", draw_norm_weights),
}


def write_figure(name: str, records: Sequence[Record], path: Path, *, layers: Sequence[str] = ()) -> None:
    """Write a figure of any runs as PNG, SVG or PDF.

    Runs that differ in the seed alone are shown as one, by their mean.

    Args:
        name: one of :data:`FIGURES`.
        records: of the runs, such as :func:`backpass.experiments.read_records` returns; ``family`` takes none, too.
        path: of the file; its suffix, ``.png``, ``.svg`` or ``.pdf``, is the format.
        layers: names of the layers to show, with or without ``.weight``; default: the first, the middle and the last.

    Raises:
        InputError: an unknown name, layer or format, or runs that the figure cannot be made from.
    """
    if name not in FIGURES:
        raise InputError(f"expected a figure among {', '.join(FIGURES)}, got {name!r}; choose one of them")
    figure = FIGURES[name]
    check_format(path)
    if figure.runs and not records:
        raise InputError(f"expected runs for the figure {name}, got none; name the folders of some")
    if layers and not figure.layers:
        shown = ", ".join(other for other, kind in FIGURES.items() if kind.layers)
        raise InputError(f"expected layers for {shown} alone, got them for {name}; leave them out")
    groups = group_records(records)
    save_figure(figure.draw(groups, layers) if figure.layers else figure.draw(groups), path)


_COLORS = ("#4c566a", "#0b7285", "#c2410c", "#6d28d9", "#15803d", "#b91c1c", "#a16207", "#0369a1")


def learning_curves(by_name: Mapping[str, Sequence[Record]]) -> str:
    """Return accuracy by epoch for each named group of runs as SVG: the mean, and the range as a band."""
    figure = _figure(7.5, 4.0)
    axes = figure.subplots()
    for number, (name, runs) in enumerate(by_name.items()):
        epochs = min(len(run.history) for run in runs)
        values = 100 * torch.tensor([run.by_epoch("accuracy")[:epochs] for run in runs])
        x = list(range(1, epochs + 1))
        color = _COLORS[number % len(_COLORS)]
        label = _plain_text(name)
        axes.plot(x, values.mean(0).tolist(), color=color, label=label, marker="o", markersize=2.5, linewidth=1.4)
        axes.fill_between(x, values.amin(0).tolist(), values.amax(0).tolist(), color=color, alpha=0.12, linewidth=0)
    axes.set(xlabel="epoch", ylabel="accuracy, %")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return _svg(figure)


def scaling_pictures(scalings: Mapping[str, Sequence[object]]) -> str:
    """Return the scaling of each layer as SVG, one small heat map a kernel with its values written in.

    Colours run from 0 to the largest entry of all kernels; 1 is plain training. A 1-D kernel is one row, of a 3-D
    kernel the middle plane is drawn.
    """
    columns = min(len(scalings), 6)
    rows = -(-len(scalings) // columns)
    figure = _figure(1.75 * columns, 2.0 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    planes = {name: _plane(torch.tensor(values)) for name, values in scalings.items()}
    high = max(float(plane.max()) for plane in planes.values())
    for ax in axes:
        ax.axis("off")
    for ax, (name, plane) in zip(axes, planes.items(), strict=False):
        ax.imshow(plane.tolist(), cmap="viridis", vmin=0.0, vmax=high)
        ax.set_title(name.removesuffix(".weight"), fontsize=7)
        for (i, j), value in zip(
            torch.cartesian_prod(*map(torch.arange, plane.shape)).tolist(), plane.flatten().tolist(), strict=True
        ):
            color = "black" if value > 0.6 * high else "white"
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color=color)
    return _svg(figure)


def value_curve(name: str, accuracies: Mapping[str, float | None]) -> str:
    """Return accuracy over the values of one setting as SVG, values evenly spaced; a value that diverged has no point.

    Args:
        name: of the setting.
        accuracies: fraction by value, in the order of the values.
    """
    figure = _figure(5.0, 2.6)
    axes = figure.subplots()
    known = [(place, 100 * value) for place, value in enumerate(accuracies.values()) if value is not None]
    axes.plot([x for x, _ in known], [y for _, y in known], color=_COLORS[1], marker="o", markersize=4, linewidth=1.4)
    axes.set_xticks(range(len(accuracies)), [_plain(value) for value in accuracies])
    axes.set(xlabel=name, ylabel="held-out accuracy, %")
    axes.grid(alpha=0.25)
    return _svg(figure)


def heat_map(names: Sequence[str], accuracies: Mapping[tuple[str, str], float | None]) -> str:
    """Return accuracy in % over the values of two settings as SVG; what was not tried or diverged is an empty cell.

    Args:
        names: of the settings: rows, columns.
        accuracies: fraction by value of the first and of the second setting.
    """
    rows, columns = (list(dict.fromkeys(point[axis] for point in accuracies)) for axis in (0, 1))
    nan = float("nan")
    cells = [[100 * (accuracies.get((r, c)) or nan) for c in columns] for r in rows]
    figure = _figure(1.6 + 0.75 * len(columns), 1.0 + 0.45 * len(rows))
    axes = figure.subplots()
    axes.imshow(cells, cmap="viridis", aspect="auto")
    known = [value for row in cells for value in row if value == value]
    middle = (min(known) + max(known)) / 2
    for i, row in enumerate(cells):
        for j, value in enumerate(row):
            if value == value:
                color = "black" if value > middle else "white"
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(columns)), [_plain(value) for value in columns])
    axes.set_yticks(range(len(rows)), [_plain(value) for value in rows])
    axes.set(xlabel=names[1], ylabel=names[0])
    return _svg(figure)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # no formula


def _plain_text(text: str) -> str:
    """Return a text that matplotlib shows as it is: no formula between dollars, and not hidden."""
    escaped = text.replace("$", r"\$")
    # Legends leave labels out that begin with an underscore.
    return f" {escaped}" if escaped.startswith("_") else escaped


def _plane(scaling: torch.Tensor) -> torch.Tensor:
    while scaling.ndim > 2:
        scaling = scaling[scaling.shape[0] // 2]
    return scaling.view(-1, scaling.shape[-1])


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # Here, since it takes seconds to load, which no worker needs to wait for.

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "backpass"}):  # else the same picture has other ids each time
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
