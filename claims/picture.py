"""Draws the claims that compare the methods as such: their differences to plain training, with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from backpass.experiments.reporting.differences import Difference
from backpass.experiments.reporting.drawing.canvas import legend, new_figure, style

__all__ = ["METHODS", "draw"]

METHODS = ("sgs", "pgt", "sgs+pgt")


def draw(found: Mapping[str, Sequence[tuple[str, Difference, str]]]) -> Any:
    """Return a figure with a row for each difference: method, difference in points, and verdict, by claim.

    A gain or a loss is drawn filled, any other verdict hollow.
    """
    rows = sum(len(differences) for differences in found.values())
    figure = new_figure(7.4, 1.3 + 0.2 * rows + 0.12 * len(found))
    axes = figure.subplots()
    y, ticks = 0.0, {}
    for name, differences in found.items():
        ticks[y + (len(differences) - 1) / 2] = name.replace("_", " ")
        for method, difference, verdict in differences:
            look = style(METHODS.index(method)) | {"markersize": 5, "linestyle": "none", "label": method}
            face = look["color"] if verdict in ("gain", "loss") else "white"
            mean = 100 * difference.mean
            if difference.low is not None and difference.high is not None:
                ends = [100 * difference.low, 100 * difference.high]
                axes.plot(ends, [y, y], color=look["color"], linewidth=1.4, solid_capstyle="butt")
            axes.plot(mean, y, markerfacecolor=face, **look)
            axes.text(1.02, y, f"{mean:+.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
            y += 1
        y += 0.6
    axes.axvline(0, color="#888888", linewidth=0.8, zorder=0)
    axes.set_ylim(y - 0.8, -0.8)
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel("accuracy - accuracy of plain training, points, with 95 % interval; filled: a gain or a loss")
    legend(figure)
    return figure
