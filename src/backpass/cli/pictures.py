"""The commands that draw: ``figure``."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from backpass.experiments import read_records, write_figure

__all__ = ["Figure"]


@dataclass(frozen=True)
class Figure:
    """Draw a figure of the papers from any runs.

    scalings (SGS Figures 4, 5), kernel-magnitude (6), family (7), k-curve (8), curves, logit-norms, reliability, and
    norm-weights. Runs that differ in the seed alone are shown as one, by their mean.

    Attributes:
        name: name of the figure.
        runs: folders of runs or studies, or files of records such as records.jsonl.gz; family needs none.
        output: file to write, .png, .svg or .pdf; default: the name of the figure, as SVG.
        layers: layers to show in scalings and kernel-magnitude; default: the first, the middle and the last.
    """

    name: tyro.conf.Positional[str]
    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    output: Path | None = None
    layers: tuple[str, ...] = ()

    def __call__(self) -> None:
        """Run the command."""
        output = self.output or Path(f"{self.name}.svg")
        records = [record for path in self.runs for record in read_records(path)]
        write_figure(self.name, records, output, layers=self.layers)
        Console().print(f"figure {output}", highlight=False, markup=False, soft_wrap=True)
