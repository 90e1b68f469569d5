import re

from backpass.experiments import RECIPES
from backpass.experiments.reporting.figures import learning_curves


def test_labels_are_neither_formulas_nor_hidden(make_record):
    """Matplotlib takes text between dollars for a formula, and leaves labels with an underscore in front out."""
    names = ["$x_{$", "a$b", "_own", "plain"]
    svg = learning_curves({name: [make_record(RECIPES["digits"], "plain", 0, [0.5, 0.6])] for name in names})
    shown = [text.strip() for text in re.findall(r"<!-- (.*?) -->", svg)]
    assert [name for name in names if name not in shown] == []
