"""The family of fixed scalings of a 3x3 kernel by alpha and beta (SGS paper, Figure 7)."""

from collections.abc import Sequence
from typing import Any

from backpass.errors import InputError
from backpass.experiments.reporting.drawing.canvas import heat_map, new_figure, plain_text
from backpass.experiments.reporting.drawing.groups import Group
from backpass.experiments.search import ALPHA_BETA_GRID
from backpass.sgs import alpha_beta_scaling

__all__ = ["draw_family"]

_EDGE, _CORNER = r"$1/\alpha$", r"$1/\beta$"
_TERMS = ((_CORNER, _EDGE, _CORNER), (_EDGE, "1", _EDGE), (_CORNER, _EDGE, _CORNER))


def draw_family(groups: Sequence[Group] = ()) -> Any:
    """Return the form of the scaling (left) and either its values or the results that runs reached with it (right).

    With runs of a fixed scaling, the headline metric after the last epoch as a mean over seeds, and that of the same
    training without SGS at alpha = beta = 1. Without any, the scalings of the paper's grid.

    Raises:
        InputError: runs that differ in more than alpha and beta.
    """
    found: dict[tuple[float, float], Group] = {}
    trainings: dict[tuple[tuple[Any, ...], str], str] = {}
    for group in groups:
        if "sgs" in group.parts and group.settings["sgs.alpha"] is not None:
            found[group.settings["sgs.alpha"], group.settings["sgs.beta"]] = group
            trainings[group.without_sgs, group.settings["sgs.apply"]] = group.label
    if len(trainings) > 1:
        raise InputError(
            f"expected runs of one training that differ in alpha and beta alone, got {'; '.join(trainings.values())}; "
            "give those of one model, data set, method and recipe"
        )
    for group in groups:
        if "sgs" not in group.parts and any(group.without_sgs == training for training, _ in trainings):
            found.setdefault((1.0, 1.0), group)
    figure = new_figure(9.0, 5.4)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2.1))
    _draw_form(left)
    if found:
        _draw_accuracies(right, found)
    else:
        _draw_scalings(right)
    return figure


def _draw_form(figure: Any) -> None:
    axes = figure.subplots()
    axes.set(xlim=(-0.5, 2.5), ylim=(2.5, -0.5), aspect="equal", xticks=[], yticks=[])
    for i, row in enumerate(_TERMS):
        for j, term in enumerate(row):
            axes.text(j, i, term, ha="center", va="center", fontsize=13)
    for place in (0.5, 1.5):
        axes.axhline(place, color="0.6", linewidth=0.8)
        axes.axvline(place, color="0.6", linewidth=0.8)
    axes.set_xlabel(r"times $9\;/\;(1 + 4/\alpha + 4/\beta)$: mean 1", fontsize=9)
    axes.set_title("scaling of a 3x3 kernel", fontsize=10)


def _draw_scalings(figure: Any) -> None:
    pairs = [*ALPHA_BETA_GRID, (1.0, 1.0)]
    alphas, betas = (sorted({pair[axis] for pair in pairs}) for axis in (0, 1))
    panels = figure.subplots(len(alphas), len(betas))
    scalings = {pair: alpha_beta_scaling(*pair) for pair in pairs}
    high = max(float(scaling.max()) for scaling in scalings.values())
    for i, alpha in enumerate(alphas):
        for j, beta in enumerate(betas):
            axes = panels[i][j]
            image = heat_map(axes, scalings[alpha, beta], high, written=False)
            if j == 0:
                axes.set_ylabel(rf"$\alpha$ = {alpha:g}", fontsize=8)
            if i == 0:
                axes.set_title(rf"$\beta$ = {beta:g}", fontsize=8)
    figure.colorbar(image, ax=panels.ravel().tolist(), label="gradient scaling (mean 1)", shrink=0.7)


def _draw_accuracies(figure: Any, found: dict[tuple[float, float], Group]) -> None:
    alphas, betas = (sorted({pair[axis] for pair in found}) for axis in (0, 1))
    means = {
        pair: 100 * sum(record.score for record in group.records) / len(group.records) for pair, group in found.items()
    }
    cells = [[means.get((alpha, beta), float("nan")) for beta in betas] for alpha in alphas]
    axes = figure.subplots()
    image = axes.imshow(cells, cmap="cividis", aspect="auto")
    middle = (min(means.values()) + max(means.values())) / 2
    for (alpha, beta), mean in means.items():
        color = "black" if mean > middle else "white"
        place = (betas.index(beta), alphas.index(alpha))
        axes.text(*place, f"{mean:.1f}\nn = {len(found[alpha, beta].records)}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axes.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    axes.set(xlabel=r"$\beta$ (corners: $1/\beta$)", ylabel=r"$\alpha$ (edges: $1/\alpha$)")
    subjects = ", ".join(dict.fromkeys(group.subject for group in found.values()))
    axes.set_title(plain_text(subjects), fontsize=10)
    figure.colorbar(image, ax=axes, label=f"{next(iter(found.values())).metric}, %")
