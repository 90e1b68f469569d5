"""Pictures of results, as SVG text: learning curves, the scalings of each layer, accuracy over tuned settings."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backpass.experiments.record import Record
from backpass.experiments.reporting.metrics import label_of

__all__ = ["heat_map", "learning_curves", "scaling_pictures", "value_curve"]

_COLORS = ("#4c566a", "#0b7285", "#c2410c", "#6d28d9", "#15803d", "#b91c1c", "#a16207", "#0369a1")


def learning_curves(by_name: Mapping[str, Sequence[Record]]) -> str:
    """Return the headline metric by epoch for each named group of runs as SVG: the mean, and the range as a band."""
    figure = _figure(7.5, 4.0)
    axes = figure.subplots()
    metric = next(iter(by_name.values()))[0].metric
    for number, (name, runs) in enumerate(by_name.items()):
        epochs = min(len(run.history) for run in runs)
        values = 100 * torch.tensor([run.by_epoch(metric)[:epochs] for run in runs])
        x = list(range(1, epochs + 1))
        color = _COLORS[number % len(_COLORS)]
        label = _plain_text(name)
        axes.plot(x, values.mean(0).tolist(), color=color, label=label, marker="o", markersize=2.5, linewidth=1.4)
        axes.fill_between(x, values.amin(0).tolist(), values.amax(0).tolist(), color=color, alpha=0.12, linewidth=0)
    axes.set(xlabel="epoch", ylabel=f"{label_of(metric)}, %")
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
