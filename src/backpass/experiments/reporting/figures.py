"""The figures of the papers from any runs, as PNG, SVG or PDF."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backpass._internal.paths import AnyPath
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

__all__ = ["FIGURES", "Figure", "write_figure"]


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


def write_figure(name: str, records: Sequence[Record], path: AnyPath, *, layers: Sequence[str] = ()) -> None:
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
    figure, path = FIGURES[name], Path(path)
    check_format(path)
    if figure.runs and not records:
        raise InputError(f"expected runs for the figure {name}, got none; name the folders of some")
    if layers and not figure.layers:
        shown = ", ".join(other for other, kind in FIGURES.items() if kind.layers)
        raise InputError(f"expected layers for {shown} alone, got them for {name}; leave them out")
    groups = group_records(records)
    save_figure(figure.draw(groups, layers) if figure.layers else figure.draw(groups), path)
