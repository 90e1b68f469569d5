"""Question: what does each method cost relative to plain training? Published for VGG-16 in SGS Table 1.

Trains one model with every method on generated images by the trainer's own step, loading included, and sets against
plain training, in the same run:

- ``step``: seconds of a training step, all methods in turn, in several rounds.
- ``run``: seconds of the recipe's whole run, which is too long to be timed and is put together from parts that are:
  ``(epochs * steps * t_step + updates * t_update) / (epochs * steps * t_plain_step)``, with an update of SGS as often
  and on as many batches as the recipe says, and ``steps`` those of an epoch of 50,000 images. Evaluation is left out.
- ``memory``: the most that training adds in a fresh process, measuring included: the peak of the resident set (CPU) or
  of the allocated memory (CUDA).
- parameters and multiply-adds of one image, as trained and as deployed.

DyRep's network grows, and where depends on gradients of a long run. Here it is grown by adjustments, each after one
step on 8 images, until its multiply-adds stand to the plain net's as they did on average over the SGS paper's runs
(VGG-16 on CIFAR-10 2.15, ResNet-18 on ImageNet 1.61); step, memory and size are those at that size. As the time of a
step follows its multiply-adds, that step stands for the run's average one; an update is an adjustment then.

Prints medians with quartiles and writes every raw value, the versions and the hardware as JSON.

    python benchmarks/cost.py                  # VGG-16, float32 -> benchmarks/results/cost-cpu.json
    python benchmarks/cost.py --device cuda    # and ResNet-18, in bfloat16 and channels_last -> cost-cuda.json there
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from backpass.experiments.recipes import get_recipe
from backpass.models import count_macs, count_parameters
from backpass.training.images import ImageData
from backpass.training.loader import Batch
from backpass.training.method import Method
from backpass.training.methods import Dynamic, Sgs, deploy
from backpass.training.recipe import Recipe, Run, Runtime
from backpass.training.trainer import Trainer
from sections import cost
from throughput import generated_data
from tools import Meter, environment_of, write_json

MODELS = ("vgg16_small", "resnet18")
RECIPES = {"vgg16_small": "cifar-600"}  # others: cifar-200
METHODS = ("plain", "sgs", "pgt", "sgs+pgt", "acb", "repvgg", "dbb", "dbb_dyrep", "dyrep")
IMAGES = 50_000
GROWING_BATCH = 8
GROWTH = {"vgg16_small": 674 / 313.5, "resnet18": 2.92 / 1.814}  # others: 2
IMAGE = (3, 32, 32)
M = TypeVar("M", bound=Method)


def recipe_of(model: str) -> Recipe:
    return replace(get_recipe(RECIPES.get(model, "cifar-200")), model=model)


def data_for(model: str, options: argparse.Namespace) -> ImageData:
    """Return as many images as the larger of the recipe's measurements takes."""
    recipe = recipe_of(model)
    return generated_data(max(recipe.sgs.batches, recipe.dyrep.recalibration_batches) * options.batch)


def build(model: str, method: str, data: ImageData, options: argparse.Namespace) -> Trainer:
    base = recipe_of(model)
    # So small a rate trains any of these nets from its start without a warm-up.
    recipe = replace(base, batch_size=options.batch, optimizer=replace(base.optimizer, lr=1e-3))
    runtime = Runtime(
        device="auto" if options.device == "cuda" else "cpu",
        precision=options.precision,
        channels_last=options.channels_last,
    )
    trainer = Trainer(Run(recipe, method), data, runtime=runtime)
    trainer.wrapped.train()
    return trainer


def endless(trainer: Trainer) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from trainer.loaders.train.iter_epoch(epoch)


def _method(trainer: Trainer, kind: type[M]) -> M:
    return next(method for method in trainer.methods.values() if isinstance(method, kind))


def adjusted_epochs(trainer: Trainer) -> list[int]:
    """Return the epochs that end with a measurement of SGS's or begin after an adjustment of DyRep's."""
    epochs = range(trainer.run.recipe.epochs)
    if "sgs" in trainer.methods:
        sgs = _method(trainer, Sgs).sgs
        return [epoch for epoch in epochs if epoch == sgs.warmup or (epoch > sgs.warmup and epoch % sgs.every == 0)]
    if "dyrep" in trainer.methods:
        return [epoch + 1 for epoch in epochs if _method(trainer, Dynamic).dyrep.due(epoch)]
    return []


def grow(trainer: Trainer) -> None:
    """Adjust DyRep's network, at most as often as the recipe does, until it has the published runs' average size."""
    dyrep = _method(trainer, Dynamic).dyrep
    images, target = (part[:GROWING_BATCH] for part in next(endless(trainer)))
    enough = GROWTH.get(trainer.run.recipe.model, 2.0) * count_macs(trainer.model, IMAGE)
    for _ in adjusted_epochs(trainer):
        if count_macs(trainer.model, IMAGE) >= enough:
            break
        trainer._step(images, target)
        dyrep.adjust([images])
        trainer.wrapped.rewrap()


def measure_size(model: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return memory and sizes."""
    meter = Meter(options.device, "wall")
    data = data_for(model, options)
    result: dict[str, Any] = {}

    def train() -> None:
        result["trainer"] = trainer = build(model, method, data, options)
        if method == "dyrep":
            grow(trainer)
        batches = endless(trainer)
        for _ in range(2):
            trainer._step(*next(batches))
        if "sgs" in trainer.methods:
            update(trainer)

    result["memory_mb"] = meter.added_memory(train)
    trainer = result.pop("trainer")
    sizes = {"parameters": count_parameters(trainer.model), "macs": count_macs(trainer.model, IMAGE)}
    deployed = deploy(method, trainer.model.eval())
    sizes |= {"deployed_parameters": count_parameters(deployed), "deployed_macs": count_macs(deployed, IMAGE)}
    return result | sizes


def in_fresh_process(model: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", model, method, "--device", options.device]
    command += ["--batch", str(options.batch), "--precision", options.precision]
    command += ["--channels-last" if options.channels_last else "--no-channels-last"]
    # Without the threshold, glibc's malloc keeps freed maps, and the peak would be a record of its habits.
    environ = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
    size: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return size


def measure_times(model: str, methods: list[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return seconds of a step, and of an update or adjustment where there is one, in every round."""
    meter = Meter(options.device, "wall")
    data = data_for(model, options)
    trainers = {method: build(model, method, data, options) for method in methods}
    times: dict[str, dict[str, Any]] = {method: {"step": [], "update": []} for method in methods}
    if "dyrep" in trainers:
        grow(trainers["dyrep"])
    batches = {method: endless(trainer) for method, trainer in trainers.items()}

    def steps(method: str, count: int) -> float:
        return meter.seconds(lambda: [trainers[method]._step(*next(batches[method])) for _ in range(count)]) / count

    for method in trainers:
        steps(method, options.warm_up)
    for number in range(options.rounds):
        for method in list(trainers) if number % 2 == 0 else list(reversed(trainers)):
            times[method]["step"].append(steps(method, options.steps))
            if "sgs" in trainers[method].methods:
                times[method]["update"].append(meter.seconds(partial(update, trainers[method])))
    if "dyrep" in trainers:
        times["dyrep"]["update"] = [meter.seconds(lambda: adjust(trainers["dyrep"]))]
    for method, trainer in trainers.items():
        times[method]["epochs"] = adjusted_epochs(trainer)
    return times


def update(trainer: Trainer) -> None:
    due = adjusted_epochs(trainer)[0]
    if not trainer.methods["sgs"].start_epoch(due, trainer._measuring_batches(due)):
        raise RuntimeError(f"expected SGS to measure before epoch {due}")


def adjust(trainer: Trainer) -> None:
    due = adjusted_epochs(trainer)[0] - 1
    if not trainer.methods["dyrep"].end_epoch(due, trainer._measuring_batches(due)):
        raise RuntimeError(f"expected DyRep to adjust after epoch {due}")


def run_seconds(times: dict[str, Any], number: int, epochs: int, steps: int) -> float:
    """Return the seconds of the recipe's run by the formula above, from the times of one round."""
    update = times["update"]
    added = len(times["epochs"]) * update[min(number, len(update) - 1)] if update else 0.0
    return float(epochs * steps * times["step"][number] + added)


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the measurements of one model, with the ratios to plain training in each round."""
    methods = list(options.methods)
    with ThreadPoolExecutor(4 if options.device == "cuda" else 1) as pool:
        sizes = dict(zip(methods, pool.map(lambda m: in_fresh_process(model, m, options), methods), strict=True))
    load = os.getloadavg()[0]
    times = measure_times(model, methods, options)
    recipe = recipe_of(model)
    epochs, steps = recipe.epochs, IMAGES // options.batch
    rows = {}
    for method in methods:
        plain = times["plain"]["step"]
        whole = [run_seconds(times[method], n, epochs, steps) for n in range(options.rounds)]
        rows[method] = sizes[method] | {
            "seconds": times[method],
            "step_ratios": [own / base for own, base in zip(times[method]["step"], plain, strict=True)],
            "run_ratios": [own / (epochs * steps * base) for own, base in zip(whole, plain, strict=True)],
            "memory_ratio": sizes[method]["memory_mb"] / sizes["plain"]["memory_mb"],
        }
    facts = {"recipe": RECIPES.get(model, "cifar-200"), "epochs": epochs, "steps_an_epoch": steps, "load": load}
    return {"model": model, **facts, "methods": rows}


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="+", help="default: VGG-16; with cuda ResNet-18 as well")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all; plain is needed")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, help="of one timing; default: 2, with cuda 50")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each method, 2 or more")
    parser.add_argument("--precision", choices=["no", "bf16"], help="default: bf16 with cuda")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, help="default: with cuda")
    parser.add_argument("--output", type=Path, help="default: results/cost-DEVICE.json next to this script")
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "METHOD"), help="memory and sizes alone, in here")
    options = parser.parse_args(arguments)
    cuda = options.device == "cuda"
    options.models = options.models or (MODELS if cuda else MODELS[:1])
    options.steps = options.steps or (50 if cuda else 2)
    options.warm_up = 10 if cuda else 1
    options.precision = options.precision or ("bf16" if cuda else "no")
    options.channels_last = cuda if options.channels_last is None else options.channels_last
    if "plain" not in options.methods or options.rounds < 2:
        parser.error(f"expected plain among --methods and 2 or more --rounds, got {options.methods}, {options.rounds}")
    return options


def main() -> None:
    options = parsed(sys.argv[1:])
    if options.measure:
        print(json.dumps(measure_size(options.measure[0], options.measure[1], options)))
        return
    settings = ("device", "batch", "steps", "rounds", "precision", "channels_last")
    evidence = {"environment": environment_of(), **{name: getattr(options, name) for name in settings}, "results": []}
    output = options.output or Path(__file__).parent / "results" / f"cost-{options.device}.json"
    for model in options.models:
        torch.manual_seed(0)
        result = measure(model, options)
        evidence["results"].append(result)
        write_json(output, evidence)
        print(cost(evidence | {"results": [result]}), flush=True)


if __name__ == "__main__":
    main()
