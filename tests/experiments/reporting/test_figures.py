import re

import torch

from backpass.experiments.reporting.drawing.canvas import band, legend, new_figure, save_figure


def test_labels_are_neither_formulas_nor_hidden(tmp_path):
    """Matplotlib takes text between dollars for a formula, and leaves labels with an underscore in front out."""
    names = ["$x_{$", "a$b", "_own", "plain"]
    figure = new_figure(6, 3)
    axes = figure.subplots()
    for number, name in enumerate(names):
        band(axes, number, name, torch.tensor([[0.5, 0.6]]), [1, 2])
    legend(figure)
    save_figure(figure, tmp_path / "labels.svg")
    shown = [text.strip() for text in re.findall(r">([^<>]*)</text>", (tmp_path / "labels.svg").read_text())]
    assert [name for name in names if name not in shown] == []
