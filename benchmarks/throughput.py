"""Claim: the trainer is nearly as fast as a loop by hand: at least 0.95 times on a CPU, 0.97 on a GPU.

Trains the same model on the same generated images (32x32, in memory) in two ways, an epoch of each in turn:

- ``trainer``: what ``backpass train`` runs, checkpoints, bars and all; its own clock around the steps of an epoch.
- ``bare``: the loop in this file: crop, flip, cutout, forward, backward, SGD, cosine; nothing that can be left out.

With ``--timm-script`` timm's training script trains the same model too, in a process of its own, on the same images as
PNG files, and its own images per second are read from its output. It crops at random scales instead of shifting, does
not cut out, and decodes files in worker processes: so it is no part of the comparison and is reported apart.
The script is not part of timm's package: take ``train.py`` from its repository, at the version that is installed.

Prints medians with quartiles of images per second and of the ratio trainer / bare, epoch by epoch; writes every raw
value, the versions, the hardware and the load as JSON.

    python benchmarks/throughput.py                  # -> benchmarks/results/throughput-cpu.json
    python benchmarks/throughput.py --device cuda    # in bfloat16 and channels_last -> throughput-cuda.json there
"""

import argparse
import math
import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from backpass.experiments.progress import Progress
from backpass.experiments.progress_bars import progress_bars
from backpass.experiments.recipes import get_recipe
from backpass.experiments.run import execute
from backpass.models import create_model
from backpass.training.datasets import CIFAR_MEAN, CIFAR_STD
from backpass.training.images import ImageData, ImageSplit
from backpass.training.outcome import EpochRecord
from backpass.training.recipe import Recipe, Run, Runtime
from sections import throughput
from tools import environment_of, smooth_images, write_json

MODELS = ("vgg11_small", "resnet18")
BATCHES = (128, 512)
# Images per epoch and epochs that are timed. On two CPU cores VGG-11 takes 5 ms an image, ResNet-18 30 ms.
EPOCHS = {"cpu": {"vgg11_small": (1024, 7), "resnet18": (512, 3)}, "cuda": dict.fromkeys(MODELS, (51200, 7))}
PADDING, CUTOUT = 4, 16


def generated_data(images: int) -> ImageData:
    """Return as many 32x32 training images of ten classes, and a few test images."""
    coarse = smooth_images(images, seed=0)
    pixels = coarse.sub_(coarse.min()).mul_(255 / coarse.max()).to(torch.uint8)
    split = ImageSplit(pixels, torch.arange(images) % 10)
    names = tuple(map(str, range(10)))
    test = split.select(torch.arange(min(images, 10)))
    return ImageData("generated", split, test, names, (32, 32), CIFAR_MEAN, CIFAR_STD)


class BareLoop:
    """Trains as the trainer does, with nothing around it."""

    def __init__(self, recipe: Recipe, data: ImageData, runtime: Runtime, device: str) -> None:
        torch.manual_seed(0)
        memory_format = torch.channels_last if runtime.channels_last else torch.contiguous_format
        self.recipe, self.device, self.memory_format = recipe, device, memory_format
        self.bfloat16 = runtime.precision == "bf16"
        self.model = create_model(recipe.model, num_classes=data.num_classes).to(device).to(memory_format=memory_format)
        if runtime.compile:
            self.model.compile()
        settings = recipe.optimizer
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.padded = F.pad(cast(ImageSplit, data.train).images.to(device), (PADDING,) * 4)
        self.labels = data.train.labels.to(device)
        self.mean, self.std = (255 * torch.tensor(v, device=device).view(-1, 1, 1) for v in (data.mean, data.std))
        self.steps_done = 0

    def augmented(self, indices: Tensor) -> Tensor:
        """Return the images at these indices, shifted, mirrored, normalised and cut."""
        count, pixels = len(indices), torch.arange(32, device=self.device)
        shift = torch.randint(2 * PADDING + 1, (count, 2, 1), device=self.device)
        columns = torch.where(torch.rand(count, 1, device=self.device) < 0.5, pixels, 31 - pixels) + shift[:, 1]
        rows = pixels + shift[:, 0]
        images = self.padded[indices[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        images = images.contiguous(memory_format=self.memory_format).float().sub_(self.mean).div_(self.std)
        start = torch.randint(32, (count, 2, 1), device=self.device) - CUTOUT // 2
        inside = (pixels >= start) & (pixels < start + CUTOUT)
        return images.masked_fill_((inside[:, 0, :, None] & inside[:, 1, None, :])[:, None], 0)

    def epoch(self) -> float:
        """Train for an epoch and return its seconds."""
        batch_size, lr = self.recipe.batch_size, self.recipe.optimizer.lr
        self.model.train()
        _synchronize(self.device)
        start = time.perf_counter()
        order = torch.randperm(len(self.labels), device=self.device)
        steps = len(order) // batch_size
        total = torch.zeros((), device=self.device)
        for step in range(steps):
            indices = order[step * batch_size : (step + 1) * batch_size]
            for group in self.optimizer.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * self.steps_done / (self.recipe.epochs * steps))) / 2
            with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
                loss = F.cross_entropy(self.model(self.augmented(indices)), self.labels[indices])
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            total += loss.detach()
            self.steps_done += 1
        if not math.isfinite(total.item()):
            raise RuntimeError(f"the bare loop diverged after {self.steps_done} steps; lower the learning rate")
        return time.perf_counter() - start


class Turns(Progress):
    """Shows the trainer's bars, and after each of its epochs runs one of the bare loop."""

    def __init__(self, bars: Progress, bare: BareLoop) -> None:
        self.bars, self.loop = bars, bare
        self.seconds: dict[str, list[float]] = {"trainer": [], "bare": []}

    def start_run(self, run: Run) -> None:
        """Hand on to the bars."""
        self.bars.start_run(run)

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Hand on to the bars."""
        self.bars.step(epoch, step, steps)

    def end_epoch(self, record: EpochRecord) -> None:
        """Note the trainer's seconds, and those of the bare loop's turn."""
        self.seconds["trainer"].append(record["train_seconds"])
        self.seconds["bare"].append(self.loop.epoch())


def measure(model: str, batch_size: int, images: int, epochs: int, runtime: Runtime, device: str) -> dict[str, Any]:
    """Return the seconds of both loops, one epoch of each in turn, the first of each left out."""
    data, base = generated_data(images), get_recipe("cifar-200")
    small = replace(base.optimizer, lr=0.01)
    recipe = replace(base, model=model, epochs=epochs + 1, batch_size=batch_size, optimizer=small)
    load = os.getloadavg()[0]
    bare = BareLoop(recipe, data, runtime, device)
    with tempfile.TemporaryDirectory() as folder, progress_bars(quiet=False) as bars:
        turns = Turns(bars, bare)
        execute(Run(recipe), data, Path(folder), runtime=runtime, progress=turns)
    seconds = {name: values[1:] for name, values in turns.seconds.items()}
    trained = images - images % batch_size
    return {
        "model": model,
        "batch": batch_size,
        "images": trained,
        "load": load,
        "seconds": seconds,
        "ratios": [bare / trainer for trainer, bare in zip(seconds["trainer"], seconds["bare"], strict=True)],
        "timm_images_a_second": None,
    }


def timm_rate(model: str, batch_size: int, images: int, epochs: int, options: argparse.Namespace) -> float:
    """Return the images per second that timm's script reports for its last epoch."""
    from torchvision.transforms.functional import to_pil_image

    with tempfile.TemporaryDirectory() as folder:
        split = cast(ImageSplit, generated_data(images).train)
        for name, count in (("train", images), ("val", batch_size)):
            for index in range(count):
                path = Path(folder) / name / str(index % 10) / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                to_pil_image(split.images[index]).save(path)
        command = [
            sys.executable,
            __file__,
            "--as-timm",
            str(options.timm_script),
            "--data-dir",
            folder,
            "--model",
            model,
        ]
        command += ["--num-classes", "10", "--input-size", "3", "32", "32", "--batch-size", str(batch_size)]
        command += ["--epochs", str(epochs), "--sched", "cosine", "--warmup-epochs", "0", "--cooldown-epochs", "0"]
        command += ["--opt", "sgd", "--lr", "0.01", "--workers", str(max(1, (os.cpu_count() or 1) - 1))]
        command += ["--color-jitter", "0", "--log-interval", "1000000", "--output", folder, "--device", options.device]
        command += ["--amp", "--amp-dtype", "bfloat16"] if options.precision == "bf16" else []
        command += ["--channels-last"] if options.channels_last else []
        command += ["--torchcompile"] if options.compile else []
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    # An epoch ends with "Train: 1 [7/8 (100%)] ... Time: 0.7s, 180/s (0.8s, 160/s)": of the last batch, and the mean.
    rates = re.findall(r"Train: .*?/s\s+\(\s*[\d.]+s,\s*([\d.]+)/s\)", done.stdout + done.stderr)
    if done.returncode or not rates:
        raise RuntimeError(
            f"expected a line 'Train: ... /s (..s, ../s)' from {options.timm_script}, got:\n{done.stderr[-2000:]}"
        )
    return float(rates[-1])


def run_timm(script: str, arguments: list[str]) -> None:
    """Run timm's script on our models, which it finds in its own registry."""
    from timm.models import register_model

    for name in MODELS:

        def build(pretrained: bool = False, name: str = name, **kwargs: Any) -> torch.nn.Module:
            return create_model(name, num_classes=kwargs["num_classes"])

        build.__name__ = name
        register_model(build)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    if sys.argv[1:2] == ["--as-timm"]:
        run_timm(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--images", type=int, help="images of an epoch; default: by model and device")
    parser.add_argument("--epochs", type=int, help="epochs that are timed; default: by model and device, 3 or more")
    parser.add_argument("--precision", choices=["no", "bf16"], help="default: bf16 with cuda")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, help="default: with cuda")
    parser.add_argument("--compile", action="store_true", help="torch.compile, of both")
    parser.add_argument("--timm-script", type=Path, help="timm's train.py")
    parser.add_argument("--output", type=Path, help="default: results/throughput-DEVICE.json next to this script")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    options.precision = options.precision or ("bf16" if cuda else "no")
    options.channels_last = cuda if options.channels_last is None else options.channels_last
    runtime = Runtime(
        device="auto" if cuda else "cpu",
        precision=options.precision,
        channels_last=options.channels_last,
        compile=options.compile,
    )
    output = options.output or Path(__file__).parent / "results" / f"throughput-{options.device}.json"
    setting = {"precision": options.precision, "channels_last": options.channels_last, "compile": options.compile}
    evidence: dict[str, Any] = {"environment": environment_of(), **setting, "results": []}
    for model in options.models:
        default_images, default_epochs = EPOCHS[options.device].get(model, EPOCHS[options.device]["resnet18"])
        epochs = options.epochs or default_epochs
        for batch_size in options.batches:
            images = max(options.images or default_images, batch_size)
            result = measure(model, batch_size, images, epochs, runtime, options.device)
            if options.timm_script:
                result["timm_images_a_second"] = timm_rate(model, batch_size, images, epochs, options)
            evidence["results"].append(result)
            write_json(output, evidence)
    print(throughput(evidence))


if __name__ == "__main__":
    main()
