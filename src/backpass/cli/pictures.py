"""The commands that draw: ``figure`` and ``inspect``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from backpass._internal.settings import COUNT, Range, check_settings
from backpass.cli.output import print_json, print_table
from backpass.experiments import LayerInspection, inspect_scalings, records_at, write_figure
from backpass.experiments.inspection_inputs import (
    folder_batches,
    generated_batches,
    images_below,
    input_form,
    load_model,
)
from backpass.experiments.reporting.drawing.canvas import check_format
from backpass.experiments.reporting.drawing.inspection import write_inspection
from backpass.experiments.reporting.terminal import terminal_table

__all__ = ["Figure", "Inspect"]


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
        records = [record for path in self.runs for record in records_at(path)]
        write_figure(self.name, records, output, layers=self.layers)
        Console().print(f"figure {output}", highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Inspect:
    """Measure the scalings of a model without training, and tell where they come from.

    The table has for each layer the scaling at the centre, the edges and the corners, its evenness (mean of the other
    taps relative to the centre), how much of it zero padding and chance make, and how far the scaling moves between
    two halves of the images.

    Attributes:
        model: name of a model (resnet20, timm/resnet18, package.module:function), or a run folder.
        images: folder of images, searched with its sub-folders; default: generated inputs with a 1/f spectrum.
        weights: trained weights instead of freshly drawn ones: a file, or timm/NAME.
        shape: channels and spatial axes of an input, such as 3 224 224; default: those of the model in timm, or of the
            first image, up to 224 pixels, or 64 pixels a side.
        count: number of images, which are held in memory.
        batch_size: images of a batch.
        k: constant k of the scaling; smaller is stronger, a large one approaches plain training.
        measure: measure of dependence between neighbouring pixels.
        output: picture to write, .png, .svg or .pdf.
        json: print the numbers as JSON and nothing else.
    """

    model: tyro.conf.Positional[str]
    images: Path | None = None
    weights: str | None = None
    shape: tuple[int, ...] = ()
    count: Annotated[int, COUNT] = 64
    batch_size: Annotated[int, COUNT] = 16
    k: Annotated[float, Range(above=0)] = 5.0
    measure: Literal["mutual_information", "autocorrelation"] = "mutual_information"
    output: Path = Path("scalings.svg")
    json: bool = False

    def __call__(self) -> None:
        """Run the command."""
        check_settings(self)
        check_format(self.output)
        model = load_model(self.model, self.weights)
        files = [] if self.images is None else images_below(self.images)
        form = input_form(model, self.shape, files[0] if files else None)
        count = min(self.count, len(files)) if files else self.count
        batch_size = min(self.batch_size, -(-count // 2))  # two batches at least, for the two halves
        if self.images is None:
            batches, source = generated_batches(form, count, batch_size), "generated inputs"
        else:
            batches = folder_batches(self.images, files, form, count, batch_size)
            source = f"images of {self.images}"
        layers = inspect_scalings(model, batches, k=self.k, measure=self.measure)
        write_inspection(layers, self.output, f"{self.model}, k = {self.k:g}")
        shape, number = "x".join(map(str, form.shape)), sum(map(len, batches))
        if self.json:
            content = {"model": self.model, "images": source, "count": number, "shape": list(form.shape)}
            print_json(content | {"layers": [layer.as_dict() for layer in layers], "picture": str(self.output)})
            return
        print_table(_table(layers))
        told = f"{self.model}: {number} {source}, {shape}, k = {self.k:g}\npicture {self.output}"
        Console().print(told, highlight=False, markup=False, soft_wrap=True)


def _table(layers: Sequence[LayerInspection]) -> Table:
    sizes = ("kernel", "stride", "dilation", "map")
    numbers = ("centre", "edge", "corner", "evenness", "padding, %", "chance, %", "shift")
    rows = [
        (
            layer.name.removesuffix(".weight"),
            *("x".join(map(str, s)) or "-" for s in (layer.kernel, layer.stride, layer.dilation, layer.map_size)),
            *("-" if n is None else f"{n:.2f}" for n in (layer.centre, layer.edge, layer.corner, layer.evenness)),
            *("-" if fraction is None else f"{100 * fraction:.0f}" for fraction in (layer.padding, layer.chance)),
            "-" if layer.shift is None else f"{layer.shift:.2f}",
        )
        for layer in layers
    ]
    return terminal_table("", (), ("layer", *sizes, *numbers), rows)
