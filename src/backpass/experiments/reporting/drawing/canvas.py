"""What all figures share: colours that colour-blind readers tell apart, heat maps of kernels, files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.training.checkpoint import atomic_write

__all__ = [
    "FORMATS",
    "band",
    "check_format",
    "heat_map",
    "legend",
    "new_figure",
    "plain_text",
    "plane",
    "save_figure",
    "style",
]

FORMATS = ("png", "svg", "pdf")
# Okabe and Ito (2008), without its yellow, which is faint on white.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DOTS_PER_INCH = 150
_LARGEST_WRITTEN = 25  # taps; the numbers of larger kernels would not be legible


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure, in inches; no display is needed."""
    # Here, since it takes seconds to load, which no worker needs to wait for.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix of the path; the same figure gives the same bytes.

    Raises:
        InputError: another suffix, or a folder that does not exist.
    """
    check_format(path)
    from matplotlib import rc_context

    kind = path.suffix[1:].lower()
    buffer = io.BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with rc_context({"svg.hashsalt": "backpass", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=kind, dpi=_DOTS_PER_INCH, metadata=undated)
    try:
        atomic_write(path, buffer.getvalue())
    except OSError as error:
        raise InputError(f"expected a path that can be written, got {path} ({error}); choose another") from error


def check_format(path: Path) -> None:
    """Raise InputError unless the path ends with a format that figures have."""
    if path.suffix[1:].lower() not in FORMATS:
        raise InputError(f"expected a path that ends with .{', .'.join(FORMATS)}, got {path}; change its suffix")


def style(number: int) -> dict[str, Any]:
    """Return colour, line style and marker of a group: no two of the first 28 are alike, also in grey."""
    return {
        "color": _COLORS[number % len(_COLORS)],
        "linestyle": _LINES[number // len(_COLORS) % len(_LINES)] if number >= len(_COLORS) else "-",
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.4,
    }


def plain_text(text: str) -> str:
    """Return a text that matplotlib shows as it is: no formula between dollars, and not hidden."""
    escaped = text.replace("$", r"\$")
    # Legends leave labels out that begin with an underscore.
    return f" {escaped}" if escaped.startswith("_") else escaped


def band(axes: Any, number: int, label: str, values: Tensor, x: Sequence[float]) -> None:
    """Draw the mean over runs as a line, and their range as a band; ``values`` has a row for each run."""
    look = style(number)
    axes.plot(x, values.mean(0).tolist(), label=plain_text(label), markevery=max(1, len(x) // 12), **look)
    axes.fill_between(x, values.amin(0).tolist(), values.amax(0).tolist(), color=look["color"], alpha=0.15, linewidth=0)


def legend(figure: Any) -> None:
    """Put the labels of all panels, each once, below them."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    columns = max(1, int(figure.get_figwidth() * 12 / max(14, *(len(label) + 6 for label in found))))
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns, frameon=False)


def plane(values: Tensor) -> Tensor:
    """Return what is shown of a kernel: all of a 2-D one, a 1-D one as a row, the middle plane of a 3-D one."""
    while values.ndim > 2:
        values = values[values.shape[0] // 2]
    return values.view(-1, values.shape[-1])


def heat_map(axes: Any, values: Tensor, high: float, *, low: float = 0.0, written: bool = True, size: float = 9) -> Any:
    """Draw one value for each tap, from ``low`` to ``high``, with the numbers written in where they fit."""
    shown = plane(values)
    image = axes.imshow(shown.tolist(), cmap="cividis", vmin=low, vmax=high)
    axes.set_xticks([])
    axes.set_yticks([])
    if written and shown.numel() <= _LARGEST_WRITTEN:
        for (i, j), value in zip(
            torch.cartesian_prod(*map(torch.arange, shown.shape)).tolist(), shown.flatten().tolist(), strict=True
        ):
            color = "black" if value > low + 0.55 * (high - low) else "white"
            axes.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=size * min(1.0, 4 / shown.shape[-1]),
                color=color,
            )
    return image
