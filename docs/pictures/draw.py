"""Draws the pictures of the README and of the method pages.

uv run --extra lab python docs/pictures/draw.py
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from backpass.pgt import power_grad_cross_entropy
from backpass.sgs import scaling_from_branches

__all__ = ["PICTURES", "draw"]

FOLDER = Path(__file__).parent
COMPARISON = FOLDER.parents[1] / "benchmarks" / "results" / "compare-digits.json"
COLORS = ("#64748b", "#0e93a8", "#e8590c", "#845ef7", "#2f9e44")
BLOCKS: dict[str, dict[str, Sequence[str]]] = {
    "acb": {"3x3": ["3x3"], "3x1": ["3x1"], "1x3": ["1x3"]},
    "repvgg": {"3x3": ["3x3"], "1x1": ["1x1"], "identity": ["1x1"]},
    "dbb": {"3x3": ["3x3"], "1x1": ["1x1"], "1x1, 3x3": ["3x3"], "1x1, average": ["3x3"]},
}


def main() -> None:
    for name in PICTURES:
        draw(name, FOLDER / f"{name}.svg")


def draw(name: str, path: Path) -> None:
    """Draw one picture; the same each time."""
    with rc_context({"svg.hashsalt": "backpass", "svg.fonttype": "path", "font.size": 10}):
        PICTURES[name]().savefig(path, format="svg", metadata={"Date": None})


def scalings() -> Figure:
    """The scalings that a run of the README's first command measured."""
    records = json.loads(COMPARISON.read_text())["records"]
    record = next(r for r in records if r["entry"] == "sgs" and r["run"]["seed"] == 0)
    figure, axes = _axes(len(record["scalings"]), (1.7 * len(record["scalings"]), 2.1))
    for axis, (name, scaling) in zip(axes, record["scalings"].items(), strict=True):
        _grid(axis, torch.tensor(scaling), name.removesuffix(".weight"))
    return figure


def pgt() -> Figure:
    """The gradient of a wrong logit and of the right one, over the probability of the right class."""
    figure, axes = _axes(1, (6.4, 3.4))
    right = torch.linspace(0.01, 0.99, 99)
    others = (1 - right) / 9
    for color, alpha in zip(COLORS, (1.0, 0.5, 0.3, 0.25), strict=False):
        logits = torch.cat([right.unsqueeze(1), others.unsqueeze(1).expand(-1, 9)], 1).log().requires_grad_()
        power_grad_cross_entropy(logits, torch.zeros(99, dtype=torch.int64), reduction="sum", alpha=alpha).backward()
        assert logits.grad is not None  # noqa: S101
        label = "plain (alpha = 1)" if alpha == 1 else f"alpha = {alpha}"
        axes[0].plot(right, -logits.grad[:, 0], color=color, label=label)
    axes[0].set(
        xlabel="probability of the right class, of 10",
        ylabel="size of the gradient of its logit",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes[0].legend(frameon=False)
    axes[0].grid(alpha=0.25)
    return figure


def agc() -> Figure:
    """The norm of a unit's gradient after clipping, over the norm before."""
    figure, axes = _axes(1, (6.4, 3.0))
    before = torch.linspace(0, 0.05, 101)
    for color, factor in zip(COLORS[1:], (0.02, 0.01), strict=False):
        axes[0].plot(before, before.clamp(max=factor), color=color, label=f"clip_factor = {factor}")
    axes[0].plot(before, before, color=COLORS[0], linestyle=":", label="unclipped")
    axes[0].set(xlabel="norm of the unit's gradient / norm of its weights", ylabel="the same after AGC", xlim=(0, 0.05))
    axes[0].legend(frameon=False)
    axes[0].grid(alpha=0.25)
    return figure


def branched(name: str) -> Figure:
    """The taps that each branch of a block covers, and the sum, which scales the gradient of one kernel."""
    block = BLOCKS[name]
    figure, axes = _axes(len(block) + 1, (1.7 * (len(block) + 1), 2.1))
    planes = {label: _padded(scaling_from_branches(sizes)) for label, sizes in block.items()}
    planes["branches per tap"] = torch.stack(list(planes.values())).sum(0)
    for axis, (label, plane) in zip(axes, planes.items(), strict=True):
        _grid(axis, plane, label)
    return figure


def dyrep() -> Figure:
    """A convolution before and after growing, and after the cut of weak branches."""
    figure, axes = _axes(3, (8.4, 2.9))
    names = ("3x3", "1x1", "1x1, 3x3", "1x1, average", "another 3x3")
    stages: Mapping[str, Sequence[str]] = {
        "start: plain": names[:1],
        "largest score: grown": names,
        "weak branches cut": (names[0], names[2], names[4]),
    }
    for axis, (title, shown) in zip(axes, stages.items(), strict=True):
        axis.set(xlim=(0, 1), ylim=(-0.5, 4.5), title=title)
        axis.axis("off")
        for place, name in enumerate(names):
            if name in shown:
                axis.add_patch(_box(0.08, 4 - place))
                axis.text(0.5, 4 - place, name, ha="center", va="center")
    return figure


def _box(x: float, y: float) -> Any:
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch((x, y - 0.3), 0.84, 0.6, boxstyle="round,pad=0.02", facecolor="#dbeef2", edgecolor=COLORS[1])


def _padded(plane: torch.Tensor) -> torch.Tensor:
    rows, columns = plane.shape
    return torch.nn.functional.pad(plane, ((3 - columns) // 2,) * 2 + ((3 - rows) // 2,) * 2)


def _grid(axis: Any, plane: torch.Tensor, title: str) -> None:
    axis.imshow(plane.tolist(), cmap="GnBu", vmin=0, vmax=5)
    axis.set_title(title, fontsize=10)
    axis.set(xticks=[], yticks=[])
    for row, values in enumerate(plane.tolist()):
        for column, value in enumerate(values):
            color = "white" if value > 3.5 else "black"
            axis.text(column, row, f"{round(value, 2):g}", ha="center", va="center", color=color)


def _axes(columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


PICTURES: dict[str, Callable[[], Figure]] = {
    "scalings": scalings,
    "pgt": pgt,
    "agc": agc,
    "acb": lambda: branched("acb"),
    "repvgg": lambda: branched("repvgg"),
    "dbb": lambda: branched("dbb"),
    "dyrep": dyrep,
}

if __name__ == "__main__":
    main()
