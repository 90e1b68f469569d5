"""Question: how accurate is each method at its own best learning rate, on held-out images?

One study: plain, sgs, pgt and sgs+pgt, each at the same learning rates, over the same seeds, judged on a fifth of the
training images. Every method gets the same number of trials. The number of epochs is chosen from two epochs of plain
training in all processes at once, so that the study ends within the limit.

    python benchmarks/rates.py --images folder:PATH --label "CIFAR-10 (JPEG)" --device cuda --minutes 10

Called again with the same folder, it resumes. Writes benchmarks/results/rates-DEVICE.json.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

from backpass.experiments import Entry, Study, compare_study, get_recipe, run_study
from backpass.experiments.study import make_key
from backpass.experiments.tuning import VALIDATION
from backpass.training.recipe import DataSettings, Recipe, Runtime
from keep import kept

METHODS = ("plain", "sgs", "pgt", "sgs+pgt")
RATES = (0.0125, 0.025, 0.05, 0.1, 0.2)
SEEDS = (0, 1, 2)
_MORE = 1.2  # SGS, checkpoints and evaluation take more than a plain epoch


def recipe_of(images: str, label: str, smoke: bool) -> Recipe:
    """Return the recipe without its learning rate and epochs."""
    recipe = get_recipe("digits") if smoke else replace(get_recipe("cifar-200"), model="vgg11_small")
    data = recipe.data if smoke else DataSettings(name=images, label=label)
    return replace(recipe, data=replace(data, validation=VALIDATION))


def rate_study(recipe: Recipe, epochs: int, rates: tuple[float, ...], seeds: tuple[int, ...]) -> Study:
    """Return every method at every rate, each compared with plain training at the same rate."""
    entries = []
    for rate in rates:
        settings = replace(recipe, epochs=epochs, optimizer=replace(recipe.optimizer, lr=rate))
        for method in METHODS:
            baseline = None if method == "plain" else make_key("plain", f"{rate:g}")
            entries.append(Entry(make_key(method, f"{rate:g}"), f"learning rate {rate:g}", method, settings, baseline))
    held_out = f"accuracy on {VALIDATION:.0%} of the training images, held out"
    title = f"Learning rates of every method, {recipe.model} on {recipe.data.label or recipe.data.name}"
    return Study(title, tuple(entries), seeds, (held_out, f"{epochs} epochs"))


def choose_epochs(recipe: Recipe, folder: Path, runs: int, processes: int, seconds: float, runtime: Runtime) -> int:
    """Return the epochs that let ``runs`` runs end within ``seconds``, from two epochs of plain training."""
    start = time.monotonic()
    probe = compare_study(replace(recipe, epochs=2), ["plain"], range(processes))
    records = run_study(probe, folder, runtime=runtime, processes=processes).records
    epoch = statistics.median(
        sum(value for name, value in record.history[-1].items() if name.endswith("_seconds")) for record in records
    )
    left = seconds - (time.monotonic() - start)
    return max(2, min(recipe.epochs, math.floor(processes * left / (_MORE * runs * epoch))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="cifar10", help="name of the data set: folder:PATH, or cifar10")
    parser.add_argument("--label", default="CIFAR-10", help="name of the data in results")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--minutes", type=float, default=10.0, help="limit of the study")
    parser.add_argument("--processes", type=int, default=1, help="number of runs at once")
    parser.add_argument("--output", type=Path, help="default: results/rates-DEVICE.json next to this script")
    parser.add_argument("--work", type=Path, default=Path("runs/rates"), help="folder of the runs")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, scikit-learn's digits")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    runtime = Runtime(
        device="auto" if cuda else "cpu", precision="bf16" if cuda else "no", channels_last=cuda, checkpoint_every=5
    )
    recipe = recipe_of(options.images, options.label, options.smoke)
    rates, seeds = (RATES[:2], SEEDS[:1]) if options.smoke else (RATES, SEEDS)
    runs = len(METHODS) * len(rates) * len(seeds)
    chosen = options.work / "epochs.txt"
    if not chosen.is_file():
        seconds = 60 * options.minutes
        epochs = (
            2
            if options.smoke
            else choose_epochs(recipe, options.work / "probe", runs, options.processes, seconds, runtime)
        )
        chosen.parent.mkdir(parents=True, exist_ok=True)
        chosen.write_text(str(epochs))
    study = rate_study(recipe, int(chosen.read_text()), rates, seeds)
    folder = options.work / "study"
    output = options.output or Path(__file__).parent / "results" / f"rates-{options.device}.json"
    command = ["python", "benchmarks/rates.py", "--device", options.device, "--label", options.label]
    try:
        run_study(study, folder, runtime=runtime, processes=options.processes)
    finally:
        content = kept(folder, command)
        if content is not None:
            output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
