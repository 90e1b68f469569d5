"""The weights of normalisation layers after training, layer by layer."""

from collections.abc import Sequence
from typing import Any

import torch

from backpass.errors import InputError
from backpass.experiments.reporting.drawing.canvas import new_figure, plain_text, style
from backpass.experiments.reporting.drawing.groups import Group, mean_of, shared_names

__all__ = ["draw_norm_weights"]


def draw_norm_weights(groups: Sequence[Group]) -> Any:
    """Return a panel for each group: the median weight of each layer, and bands of 80 % and 100 % of the channels.

    Layers in the order of the model, those that all runs of the group have; deciles are means over seeds.

    Raises:
        InputError: no run has traces of the weights of normalisation layers, or no layer is in all runs
            of any group.
    """
    named = [(group, shared_names([record.traces.norm_weights for record in group.records])) for group in groups]
    shown = [(group, names) for group, names in named if names]
    if not shown:
        raise InputError(
            "expected runs with traces of normalisation layers, the same in all seeds, got none; train a model that "
            "has such layers with runtime.traces, or name one run"
        )
    figure = new_figure(3.4 * len(shown), 3.2)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for number, (axes, (group, names)) in enumerate(zip(panels, shown, strict=True)):
        deciles = torch.stack([mean_of([r.traces.norm_weights[name] for r in group.records]) for name in names])
        x = list(range(1, len(names) + 1))
        look = style(number)
        for low, high in ((0, 10), (1, 9)):
            bounds = deciles[:, low].tolist(), deciles[:, high].tolist()
            axes.fill_between(x, *bounds, color=look["color"], alpha=0.18, linewidth=0)
        axes.plot(x, deciles[:, 5].tolist(), **look)
        axes.set(xlabel="normalisation layer, first to last")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(plain_text(group.label), fontsize=10)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("weight: median, 80 %, all channels")
    figure.suptitle(plain_text(", ".join(dict.fromkeys(group.subject for group, _ in shown))), fontsize=10)
    return figure
