"""Question: how much faster is a whole SGS update than the published one? Asked for: 2 times, in 1/30 of its memory.

Both run in turn on the same model and images, in both memory formats, each measurement in a fresh process:

- ``update``: everything, from batches to scalings. The published driver sends all batches through the model at once, in
  eval mode with autograd on, copies every padded map to the host, and estimates layer by layer; it is driven here as it
  drives itself, without its ``.cuda()``. Ours is ``SpatialGradientScaling.update``.
- ``estimate``: the estimator alone, on the same padded maps in memory, one layer after the other.

Memory is the growth of the peak resident set over a process that has loaded everything and run one small update,
measured once, apart from the time.

The published estimator is not part of this repository: clone github.com/Ascend-Research/Reparameterization and name the
folder of its ``dependence.py``. It needs fast-histogram, and NumPy 1, under which it counts every pixel (NumPy 2 makes
it lose the maxima).

    python benchmarks/sgs_published.py --published FOLDER [--images folder:PATH] [--models vgg16_small resnet18]
"""

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backpass
from backpass.sgs.dependence import MutualInformation
from backpass.sgs.scaling import scaling_from_dependence
from sections import published
from tools import BATCH, Meter, environment_of, smooth_images, warmed_up, write_json

REPETITIONS = {2: 5, 20: 3}  # by batches of 128 images; 3 for any other number
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # else glibc keeps freed blocks, which reads as memory in use
K = 5.0
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def published_module(folder: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("published_dependence", Path(folder) / "dependence.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"expected dependence.py in {folder}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published_update(model: nn.Module, batches: list[Tensor], estimate: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Return the scalings as the published driver makes them: one forward pass over all, maps held on the host."""
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(layer: nn.Conv2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            rows, columns = (int(padding) for padding in layer.padding)
            maps[name] = F.pad(inputs[0], (rows, rows, columns, columns)).detach().cpu()

        return hook

    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and min(m.kernel_size) > 1}
    handles = [module.register_forward_hook(keep(name)) for name, module in convs.items()]
    model.eval()
    model(torch.cat(batches))
    scalings = {}
    for name, module in convs.items():
        dependence = estimate(maps[name], module.kernel_size, k=K, diag_rem=False)
        scalings[f"{name}.weight"] = dependence / dependence.mean()
    for handle in handles:
        handle.remove()
    return scalings


def padded_maps(model: nn.Module, batches: list[Tensor]) -> list[tuple[tuple[int, ...], Tensor]]:
    maps: dict[str, list[Tensor]] = {}
    sizes = {}
    from backpass.sgs.feature_maps import FeatureMap, capture_feature_maps, evaluating
    from backpass.sgs.layers import scalable_convs

    layers = scalable_convs(model)

    def visit(feature_map: FeatureMap) -> None:
        padded = F.pad(feature_map.values, [count for sides in reversed(feature_map.zeros) for count in sides])
        maps.setdefault(feature_map.layer.name, []).append(padded)

    with evaluating(model), capture_feature_maps(list(layers.values()), visit):
        for batch in batches:
            model(batch)
    sizes = {name: layer.kernel_size for name, layer in layers.items()}
    return [(sizes[name], torch.cat(parts)) for name, parts in maps.items()]


def our_estimate(kernel_size: tuple[int, ...], feature_map: Tensor) -> Tensor:
    dependence = MutualInformation(kernel_size, feature_map.shape[1])
    dependence.observe(feature_map, (1, 1))
    dependence.start_counting()
    dependence.count(feature_map, (1, 1))
    return scaling_from_dependence(dependence.result(), K)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One measurement of one side, in this process."""
    meter = Meter("cpu", arguments.clock)
    model = warmed_up(arguments.models[0], "cpu")
    count = arguments.batches
    if arguments.images:
        from backpass.training.datasets import load_dataset
        from backpass.training.images import ImageData, ImageSplit
        from backpass.training.loader import BatchPlan, DeviceLoader

        data = load_dataset(arguments.images, limit_train=BATCH * count, limit_test=10)
        if not isinstance(data, ImageData) or not isinstance(data.train, ImageSplit):
            raise SystemExit(f"expected images that fit into memory, got {arguments.images}; choose another data set")
        loader = DeviceLoader(data.train, data, BatchPlan(BATCH * count, BATCH, training=True))
        batches = [images for images, _ in loader]
    else:
        batches = [smooth_images(BATCH, seed) for seed in range(count)]
    memory_format = FORMATS[arguments.memory_formats[0]]
    model = model.to(memory_format=memory_format)
    batches = [images.contiguous(memory_format=memory_format) for images in batches]
    estimate = published_module(arguments.published).feature_map_nmik
    sgs = backpass.SpatialGradientScaling(model, k=K)
    sgs.update([batches[0][:2]])
    published_update(model, [batches[0][:2]], estimate)
    if arguments.what == "estimate":
        maps = padded_maps(model, batches)
        if arguments.side == "ours":
            seconds = meter.seconds(lambda: [our_estimate(size, x) for size, x in maps])
        else:
            seconds = meter.seconds(lambda: [estimate(x, size, k=K, diag_rem=False) for size, x in maps])
        return {"seconds": seconds}
    found: dict[str, Tensor] = {}

    def update() -> None:
        if arguments.side == "ours":
            sgs.update(batches)
            found.update(sgs.scalings)
        else:
            found.update(published_update(model, batches, estimate))

    if arguments.what == "memory":
        return {"memory_mb": meter.added_memory(update)}
    return {"seconds": meter.seconds(update), "scalings": {name: s.tolist() for name, s in found.items()}}


def in_fresh_process(options: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    options = [*options, "--published", arguments.published, "--clock", arguments.clock]
    options += ["--images", arguments.images] if arguments.images else []
    environ = os.environ | (RETURN_MEMORY if "memory" in options else {})
    done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, env=environ, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def largest_difference(ours: dict[str, Any], published: dict[str, Any]) -> float:
    return max(
        (torch.tensor(ours["scalings"][name]) - torch.tensor(published["scalings"][name])).abs().max().item()
        for name in ours["scalings"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", required=True)
    parser.add_argument("--images", default=None)
    parser.add_argument("--models", nargs="+", default=["vgg16_small", "resnet18"])
    parser.add_argument("--memory-formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="of both sides")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(REPETITIONS))
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--output", default="benchmarks/results/sgs-published-cpu.json")
    parser.add_argument("--what", choices=["update", "estimate", "memory"])
    parser.add_argument("--side", choices=["ours", "published"])
    parser.add_argument("--batches", type=int)
    arguments = parser.parse_args()
    if arguments.what:
        print(json.dumps(measure(arguments)))
        return
    rows = []
    for model, memory_format, count in itertools.product(arguments.models, arguments.memory_formats, arguments.sizes):
        setting = ["--models", model, "--memory-formats", memory_format, "--batches", str(count)]
        for what in ("update", "estimate"):
            row: dict[str, Any] = {
                "model": model,
                "memory_format": memory_format,
                "images": BATCH * count,
                "what": what,
                "load": os.getloadavg()[0],
            }
            sides: dict[str, list[dict[str, Any]]] = {"ours": [], "published": []}
            for _ in range(REPETITIONS.get(count, 3)):
                for side, found in sides.items():
                    options = [*setting, "--what", what, "--side", side]
                    found.append(in_fresh_process(options, arguments))
            seconds = {side: [m["seconds"] for m in found] for side, found in sides.items()}
            ratios = [p / o for o, p in zip(*seconds.values(), strict=True)]
            row |= {"seconds": seconds, "ratios": ratios}
            if what == "update":
                options = [*setting, "--what", "memory", "--side"]
                row["memory_mb"] = {side: in_fresh_process([*options, side], arguments)["memory_mb"] for side in sides}
                row["largest_difference"] = largest_difference(sides["ours"][0], sides["published"][0])
            rows.append(row)
            content = {"environment": environment_of(), "images": arguments.images or "smooth random", "rows": rows}
            content |= {"clock": arguments.clock, "time": time.strftime("%Y-%m-%d")}
            write_json(Path(arguments.output), content)
            print(published(content | {"rows": [row]}), flush=True)


if __name__ == "__main__":
    main()
