"""Accuracy over k, normalised so that the baseline is 0 and k = 5 is 1 (SGS paper, Figure 8)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backpass.errors import InputError
from backpass.experiments.reporting.differences import Difference, paired_difference
from backpass.experiments.reporting.drawing.canvas import legend, new_figure, plain_text, style
from backpass.experiments.reporting.drawing.groups import Group, settings_apart

__all__ = ["draw_k_curve"]

_REFERENCE = 5.0


@dataclass(frozen=True)
class _Curve:
    label: str
    points: dict[float, Difference]

    @property
    def unit(self) -> float | None:
        """The gain at k = 5, which counts as 1; ``None`` where there is none above 0."""
        reference = self.points.get(_REFERENCE)
        return reference.mean if reference is not None and reference.mean > 0 else None


def draw_k_curve(groups: Sequence[Group]) -> Any:
    """Return differences to the baseline in points (left) and the normalised accuracy (right) over k.

    One curve for each model, data set and recipe, named by the settings in which recipes differ: the mean of the paired
    differences over common seeds to the same training without SGS, on the left with their 95 % confidence interval. On
    the right they are divided by the difference at k = 5, so a curve is there only if it has k = 5 and a gain at it;
    elsewhere that division would mean nothing.

    Raises:
        InputError: no runs of SGS that differ in k, with runs of their baseline.
    """
    curves = _curves(groups)
    if not curves:
        raise InputError(
            "expected runs of SGS at two values of k or more, and runs of the same training without SGS over common "
            f"seeds, got {', '.join(group.label for group in groups)}; add the missing ones"
        )
    figure = new_figure(8.4, 3.6)
    left, right = figure.subplots(1, 2)
    for number, curve in enumerate(curves):
        ks = sorted(curve.points)
        found = [curve.points[k] for k in ks]
        means = [100 * d.mean for d in found]
        errors = [100 * (d.mean - d.low) if d.low is not None else 0.0 for d in found]
        look = style(number)
        label = plain_text(curve.label + ("" if curve.unit else " (no gain at k = 5)"))
        left.errorbar(ks, means, yerr=errors, capsize=2.5, label=label, **look)
        if curve.unit:
            right.plot(ks, [d.mean / curve.unit for d in found], **look)
    left.set(xlabel="k", ylabel=f"gain in {groups[0].metric}, points")
    right.set(xlabel="k", ylabel=f"normalised {groups[0].metric}")
    if not any(curve.unit for curve in curves):
        right.set(xlim=left.get_xlim(), ylim=(-0.2, 1.2))
        right.text(0.5, 0.5, "no gain at k = 5", transform=right.transAxes, ha="center", va="center", color="0.4")
    right.axhline(1.0, color="0.6", linewidth=0.8, linestyle=":")
    for axes in (left, right):
        axes.axhline(0.0, color="0.4", linewidth=0.8)
        axes.grid(alpha=0.25)
    right.set_title("baseline = 0, k = 5 is 1", fontsize=9)
    left.set_title("relative to the baseline, 95 % interval", fontsize=9)
    legend(figure)
    return figure


def _curves(groups: Sequence[Group]) -> list[_Curve]:
    baselines = {group.without_sgs: group for group in groups if "sgs" not in group.parts}
    curves: dict[tuple[str, str, tuple[tuple[str, Any], ...]], dict[float, Difference]] = {}
    for group in groups:
        if "sgs" not in group.parts or group.settings["sgs.alpha"] is not None or group.settings["sgs.branches"]:
            continue
        baseline = baselines.get(group.without_sgs)
        difference = None if baseline is None else _difference(group, baseline)
        if difference is not None:
            settings = tuple((name, value) for name, value in group.settings.items() if name != "sgs.k")
            key = (group.subject, group.method, settings)
            curves.setdefault(key, {})[group.settings["sgs.k"]] = difference
    shown = {key: points for key, points in curves.items() if len(points) > 1}
    named: list[_Curve] = []
    for (subject, method, settings), points in shown.items():
        alike = [dict(other) for *names, other in shown if names == [subject, method]]
        words = [subject, *([] if method == "sgs" else [method]), *settings_apart(dict(settings), alike)]
        named.append(_Curve(", ".join(words), points))
    return named


def _difference(group: Group, baseline: Group) -> Difference | None:
    own, base = ({record.seed: record.score for record in g.records} for g in (group, baseline))
    common = [seed for seed in own if seed in base]
    return paired_difference([own[s] for s in common], [base[s] for s in common]) if common else None
