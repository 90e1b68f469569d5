"""The charts of the report, as Vega-Lite specifications: data and encodings, no drawing.

Text is drawn in the colour of the page, so that one chart serves light, dark and paper.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from backpass.experiments.record import Record
from backpass.experiments.reporting.differences import Difference
from backpass.experiments.reporting.metrics import label_of

__all__ = ["COLORS", "Chart", "chart", "cost_chart", "difference_chart", "learning_curves"]

Chart = dict[str, Any]
"""A Vega-Lite specification."""

COLORS = ("#64748b", "#0e93a8", "#e8590c", "#845ef7", "#2f9e44", "#e03131", "#b08900", "#d6336c")

_INK = "currentColor"
_AXIS = {
    "labelColor": _INK,
    "titleColor": _INK,
    "gridColor": _INK,
    "domainColor": _INK,
    "tickColor": _INK,
    "gridOpacity": 0.12,
    "domainOpacity": 0.4,
    "tickOpacity": 0.4,
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "labelLimit": 220,
}
_CONFIG = {
    "font": "system-ui, sans-serif",
    "background": None,
    "view": {"stroke": None},
    "axis": _AXIS,
    "text": {"color": _INK},
    "legend": {"labelColor": _INK, "titleColor": _INK, "labelFontSize": 12, "labelLimit": 280, "symbolLimit": 0},
    "range": {"category": list(COLORS)},
}
_WIDE = 40  # characters of a legend that fit next to each other on a phone


def learning_curves(by_name: Mapping[str, Sequence[Record]]) -> Chart:
    """Return metrics by epoch for each named group of runs: the mean as a line, the range as a band."""
    values: list[dict[str, Any]] = []
    shown_metrics = _metrics(next(iter(by_name.values()))[0].metric)
    for name, runs in by_name.items():
        epochs = min(len(run.history) for run in runs)
        for metric, (title, factor) in shown_metrics.items():
            keys = [metric.replace("SPLIT", run.data.split) for run in runs]
            for epoch in range(epochs):
                found = [run.history[epoch].get(key) for run, key in zip(runs, keys, strict=True)]
                known = [factor * value for value in found if value is not None]
                if len(known) == len(found):
                    mean = sum(known) / len(known)
                    point = {"epoch": epoch + 1, "mean": mean, "low": min(known), "high": max(known), "n": len(known)}
                    values.append({"entry": name, "metric": title, **_rounded(point)})
    metrics = list(dict.fromkeys(value["metric"] for value in values))
    x = {"field": "epoch", "type": "quantitative", "axis": {"tickMinStep": 1, "format": "d"}, "title": "epoch"}
    y = {"type": "quantitative", "scale": {"zero": False}, "title": None}
    color = _color(list(by_name))
    tips = [
        {"field": "entry"},
        {"field": "epoch"},
        {"field": "mean", "format": ".4~g"},
        {"field": "low", "title": "lowest", "format": ".4~g"},
        {"field": "high", "title": "highest", "format": ".4~g"},
        {"field": "n", "title": "runs"},
    ]
    shown = {"condition": {"param": "shown", "value": 1, "empty": True}, "value": 0.08}
    return chart(
        "Metrics by epoch: mean over seeds, and the range as a band",
        values,
        height=300,
        params=[
            {"name": "metric", "value": metrics[0], "bind": {"input": "select", "options": metrics, "name": "show "}}
        ],
        transform=[{"filter": "datum.metric === metric"}],
        encoding={"x": x, "color": color},
        layer=[
            {
                "mark": {"type": "area", "opacity": 0.15},
                "encoding": {"y": {"field": "low", **y}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "strokeWidth": 1.8},
                "encoding": {"y": {"field": "mean", **y}, "opacity": shown},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 22},
                "params": [{"name": "shown", "select": {"type": "point", "fields": ["entry"]}, "bind": "legend"}],
                "encoding": {"y": {"field": "mean", **y}, "opacity": shown, "tooltip": tips},
            },
        ],
    )


def cost_chart(by_name: Mapping[str, Sequence[Record]]) -> Chart:
    """Return the headline metric against cost: each run as a small point, the mean of each group as a large one.

    Cost is that of training and measuring: GPU hours where every run has them, and else seconds.
    """
    runs = [run for group in by_name.values() for run in group]
    on_gpus = all(run.cost.gpu_hours is not None for run in runs)
    label = label_of(runs[0].metric)
    title = f"{'GPU hours' if on_gpus else 'seconds'} of training and measuring of a run"
    values: list[dict[str, Any]] = []
    for name, group in by_name.items():
        points = [
            {"cost": (run.training_gpu_hours or 0.0) if on_gpus else run.seconds, "score": 100 * run.score}
            for run in group
        ]
        values += [
            {"entry": name, "of": f"seed {run.seed}", **_rounded(p)} for run, p in zip(group, points, strict=True)
        ]
        mean = {key: sum(point[key] for point in points) / len(points) for key in ("cost", "score")}
        values.append({"entry": name, "of": f"mean of {len(group)}", **_rounded(mean)})
    is_mean = "indexof(datum.of, 'mean') === 0"
    return chart(
        f"{label} against cost",
        values,
        height=260,
        mark={"type": "point", "filled": True},
        encoding={
            "x": {"field": "cost", "type": "quantitative", "scale": {"zero": False, "padding": 12}, "title": title},
            "y": {
                "field": "score",
                "type": "quantitative",
                "scale": {"zero": False, "padding": 12},
                "title": f"{label}, %",
            },
            "color": _color(list(by_name)),
            "size": {"condition": {"test": is_mean, "value": 150}, "value": 45},
            "opacity": {"condition": {"test": is_mean, "value": 1}, "value": 0.5},
            "tooltip": [
                {"field": "entry"},
                {"field": "of", "title": "run"},
                {"field": "score", "title": label, "format": ".2f"},
                {"field": "cost", "title": title, "format": ".4~g"},
            ],
        },
    )


def difference_chart(by_name: Mapping[str, Difference]) -> Chart:
    """Return the difference of each entry to its baseline, in points, with its 95 % interval.

    Args:
        by_name: differences that have an interval.
    """
    keys = ("mean", "low", "high")
    values = [
        {"entry": name, **_rounded({key: 100 * getattr(found, key) for key in keys})} for name, found in by_name.items()
    ]
    x = {"type": "quantitative", "title": "difference to the baseline, points"}
    tips = [{"field": "entry"}, *({"field": name, "format": "+.2f"} for name in keys)]
    return chart(
        "Differences to the baseline with 95 % confidence intervals",
        values,
        height=34 * len(values),
        encoding={"y": {"field": "entry", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 130}}},
        layer=[
            {"mark": {"type": "rule", "color": _INK, "opacity": 0.5}, "encoding": {"x": {"datum": 0, **x}, "y": None}},
            {
                "mark": {"type": "rule", "strokeWidth": 2, "color": COLORS[1]},
                "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "color": COLORS[1], "opacity": 1},
                "encoding": {"x": {"field": "mean", **x}, "tooltip": tips},
            },
        ],
    )


def chart(description: str, values: Sequence[Mapping[str, Any]], **content: Any) -> Chart:
    """Return a specification that is as wide as the page and has its colours.

    Args:
        description: for those who do not see it.
        values: the rows of its data.
        content: everything else.
    """
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": _CONFIG,
        "data": {"values": list(values)},
        **content,
    }


def _metrics(headline: str) -> dict[str, tuple[str, float]]:
    """Return what curves can show: by name in the history (SPLIT is the evaluated one), name for readers and factor."""
    label = label_of(headline)
    return {
        f"SPLIT_{headline}": (f"{label}, %", 100.0),
        "SPLIT_loss": ("loss", 1.0),
        "SPLIT_calibration_error": ("calibration error, %", 100.0),
        f"train_{headline}": (f"training {label}, %", 100.0),
        "train_loss": ("training loss", 1.0),
    }


def _color(names: Sequence[str]) -> dict[str, Any]:
    longest = max(map(len, names))
    columns = max(1, min(len(names), _WIDE // (longest + 3)))
    return {
        "field": "entry",
        "type": "nominal",
        "scale": {"domain": list(names)},
        "legend": {"orient": "top", "title": None, "columns": columns, "symbolType": "circle", "symbolOpacity": 1},
    }


def _rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return numbers with the digits that a chart can show."""
    return {name: float(f"{value:.6g}") for name, value in numbers.items()}
