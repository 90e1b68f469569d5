"""The charts of a tuning stage, as Vega-Lite specifications: one setting, two, or more."""

from collections.abc import Sequence
from typing import Any

from backpass.experiments.reporting.charts import COLORS, Chart, chart
from backpass.experiments.tuning import Trial

__all__ = ["tuning_chart"]

_MANY = 12  # values of one axis that are all written


def tuning_chart(trials: Sequence[Trial], best: int | None, metric: str) -> Chart | None:
    """Return the headline metric over what was tried, with the chosen point marked; ``None`` where nothing was tried.

    One setting gives a curve, two a heat map, three or more parallel coordinates, whose last axis is the metric.
    Values are evenly spaced. A point that diverged has no score: a curve leaves it out, a heat map names it.

    Args:
        trials: the points, with the same settings throughout.
        best: index of the chosen one; ``None``: none yet.
        metric: what the headline metric is called.
    """
    if not trials:
        return None
    names = [name for name, _ in trials[0].point]
    rows = [
        {
            **{f"value{number}": value for number, (_, value) in enumerate(trial.point)},
            "score": None if trial.score is None else round(100 * trial.score, 4),
            "state": "diverged" if trial.score is None else "chosen" if number == best else "tried",
        }
        for number, trial in enumerate(trials)
    ]
    draw = {1: _curve, 2: _heat_map}.get(len(names), _parallel)
    return draw(names, rows, f"held-out {metric}")


def _curve(names: Sequence[str], rows: Sequence[dict[str, Any]], metric: str) -> Chart:
    return chart(
        _sentence(f"{metric} over {names[0]}"),
        [row for row in rows if row["score"] is not None],
        height=220,
        encoding={
            "x": {"field": "value0", "type": "ordinal", "scale": _domain(rows, 0), "title": names[0], "axis": _FLAT},
            "y": {"field": "score", "type": "quantitative", "scale": {"zero": False}, "title": f"{metric}, %"},
        },
        layer=[
            {"mark": {"type": "line", "color": COLORS[1]}},
            {
                "mark": {"type": "point", "filled": True, "opacity": 1},
                "encoding": {"color": _BEST_COLOR, "size": _BEST_SIZE, "tooltip": _tips(names, metric)},
            },
        ],
    )


def _heat_map(names: Sequence[str], rows: Sequence[dict[str, Any]], metric: str) -> Chart:
    known = [row["score"] for row in rows if row["score"] is not None]
    middle = (min(known) + max(known)) / 2 if known else 0.0
    chosen = "datum.state === 'chosen'"
    return chart(
        _sentence(f"{metric} over {names[0]} and {names[1]}"),
        [{**row, "text": "diverged" if row["score"] is None else f"{row['score']:.1f}"} for row in rows],
        height=34 * len(_values(rows, 0)),
        encoding={
            "x": {"field": "value1", "type": "ordinal", "scale": _domain(rows, 1), "title": names[1], "axis": _FLAT},
            "y": {"field": "value0", "type": "ordinal", "scale": _domain(rows, 0), "title": names[0]},
            "tooltip": _tips(names, metric),
        },
        layer=[
            {
                "mark": {"type": "rect", "stroke": "currentColor"},
                "encoding": {
                    "color": {
                        "field": "score",
                        "type": "quantitative",
                        "scale": {"scheme": "viridis", "zero": False},
                        "legend": None,
                    },
                    "fillOpacity": {"condition": {"test": "datum.score === null", "value": 0}, "value": 1},
                    "strokeWidth": {"condition": {"test": chosen, "value": 3}, "value": 0},
                },
            },
            {
                "mark": {"type": "text", "fontSize": 12},
                "encoding": {
                    "text": {"field": "text"},
                    "color": {
                        "condition": [
                            {"test": "datum.score === null", "value": "currentColor"},
                            {"test": f"datum.score > {middle}", "value": "black"},
                        ],
                        "value": "white",
                    },
                },
            },
        ],
    )


def _parallel(names: Sequence[str], rows: Sequence[dict[str, Any]], metric: str) -> Chart:
    """Return one line for each point that trained, over axes with a place from 0 to 1 for each value."""
    known = [row for row in rows if row["score"] is not None]
    low = min((row["score"] for row in known), default=0.0)
    high = max((row["score"] for row in known), default=0.0)
    title = f"{metric}, %"
    shown = _short(names)
    axes = [*shown, title]
    orders = [_values(rows, number) for number in range(len(names))]
    lines = [
        {**row, "point": number, "axis": axis, "place": place}
        for number, row in enumerate(known)
        for axis, place in [
            *((name, _place(orders[i].index(row[f"value{i}"]), len(orders[i]))) for i, name in enumerate(shown)),
            (title, (row["score"] - low) / (high - low) if high > low else 0.5),
        ]
    ]
    labels = [
        {"axis": name, "place": _place(index, len(order)), "text": value}
        for name, order in zip(shown, orders, strict=True)
        for index, value in enumerate(order)
        if len(order) <= _MANY or index in (0, len(order) - 1)
    ]
    labels += [{"axis": title, "place": place, "text": f"{value:.1f}"} for place, value in ((0, low), (1, high))]
    x = {"field": "axis", "type": "ordinal", "scale": {"domain": axes}, "title": None}
    y = {"field": "place", "type": "quantitative", "axis": None, "scale": {"domain": [-0.02, 1.07]}}
    chosen = "datum.state === 'chosen'"
    return chart(
        f"Parallel coordinates: a line for each point, over its settings and its {metric}",
        lines,
        height=300,
        encoding={"x": {**x, "axis": {**_FLAT, "grid": True}}, "y": y},
        layer=[
            {
                "mark": {"type": "line"},
                "encoding": {
                    "detail": {"field": "point"},
                    "color": {
                        "field": "score",
                        "type": "quantitative",
                        "scale": {"scheme": "viridis", "zero": False},
                        "legend": {"orient": "top", "title": f"{metric}, %", "gradientLength": 160},
                    },
                    "strokeWidth": {"condition": {"test": chosen, "value": 4}, "value": 1.2},
                    "opacity": {"condition": {"test": chosen, "value": 1}, "value": 0.55},
                    "tooltip": _tips(names, metric),
                },
            },
            {
                "data": {"values": labels},
                "mark": {"type": "text", "align": "left", "dx": 4, "dy": -7, "fontSize": 11},
                "encoding": {"text": {"field": "text"}},
            },
        ],
    )


def _short(names: Sequence[str]) -> list[str]:
    """Return names without their groups, such as ``lr`` for ``optimizer.lr``; as they are where two would be alike."""
    short = [",".join(part.rpartition(".")[2] for part in name.split(",")) for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _values(rows: Sequence[dict[str, Any]], number: int) -> list[str]:
    """Return the values of a setting in order: numbers by size, others as they were tried."""
    values = list(dict.fromkeys(row[f"value{number}"] for row in rows))
    try:
        return sorted(values, key=float)
    except ValueError:
        return values


def _domain(rows: Sequence[dict[str, Any]], number: int) -> dict[str, Any]:
    return {"domain": _values(rows, number)}


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _place(index: int, count: int) -> float:
    return index / (count - 1) if count > 1 else 0.5


def _tips(names: Sequence[str], metric: str) -> list[dict[str, Any]]:
    return [
        *({"field": f"value{number}", "title": name} for number, name in enumerate(names)),
        {"field": "score", "title": f"{metric}, %", "format": ".2f"},
        {"field": "state"},
    ]


_FLAT = {"labelAngle": 0}
_BEST_COLOR = {"condition": {"test": "datum.state === 'chosen'", "value": COLORS[2]}, "value": COLORS[1]}
_BEST_SIZE = {"condition": {"test": "datum.state === 'chosen'", "value": 170}, "value": 50}
