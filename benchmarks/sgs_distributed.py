"""Claim: measuring on several processes sends tens of MB of counts where feature maps would be GB, and changes nothing.

Starts 2 and 4 processes (gloo, this machine), splits 20 batches of 128 images among them, updates SGS on VGG-16-BN for
CIFAR, and counts the bytes of every tensor handed to ``all_reduce``. The published code gathers all maps on every
process instead; their size is summed up. Every process's scalings are compared, bit for bit, with those of one
process on all batches.

    python benchmarks/sgs_distributed.py        # -> benchmarks/results/sgs-distributed.json
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from backpass.sgs import measure_scalings, scalable_convs
from backpass.sgs.feature_maps import FeatureMap, capture_feature_maps, evaluating
from backpass.sgs.histogram import framed_shape
from sections import distributed
from tools import BATCH, environment_of, smooth_images, warmed_up, write_json

OUTPUT = Path(__file__).parent / "results" / "sgs-distributed.json"


def work(rank: int, world_size: int, batches: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size)
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counting(tensor: Tensor, *args: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args)

    setattr(dist, "all_reduce", counting)  # noqa: B010  # mypy takes no other function in its place
    mine = [smooth_images(BATCH, seed) for seed in range(rank, batches, world_size)]
    scalings = measure_scalings(warmed_up("vgg16_small", "cpu"), mine).scalings
    torch.save({"sent": sent, "scalings": scalings}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def bytes_of_maps(batches: int) -> int:
    """Return the size of the padded float32 maps of all layers and batches, from one small batch."""
    model, size = warmed_up("vgg16_small", "cpu"), 0

    def add(feature_map: FeatureMap) -> None:
        nonlocal size
        size += 4 * math.prod(framed_shape(feature_map.values.shape, feature_map.zeros))

    with evaluating(model), capture_feature_maps(list(scalable_convs(model).values()), add):
        model(smooth_images(1, 0))
    return size * BATCH * batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    single = measure_scalings(
        warmed_up("vgg16_small", "cpu"), [smooth_images(BATCH, seed) for seed in range(options.batches)]
    ).scalings
    maps = bytes_of_maps(options.batches)
    rows = []
    for world_size in (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            spawn(work, (world_size, options.batches, folder), nprocs=world_size)
            ranks = [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(world_size)]
        equal = all(torch.equal(rank["scalings"][name], single[name]) for rank in ranks for name in single)
        row = {"processes": world_size, "images": BATCH * options.batches, "sent": ranks[0]["sent"]}
        rows.append(row | {"maps": maps, "equal": equal})
    evidence = {"environment": environment_of(), "rows": rows}
    write_json(OUTPUT, evidence)
    print(distributed(evidence))


if __name__ == "__main__":
    main()
