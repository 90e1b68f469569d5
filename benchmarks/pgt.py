"""Question: what does the PowerGrad loss cost relative to cross-entropy? Required: below 2 times, compiled 1.2.

Times forward and backward of both losses on the same float32 logits, in turn, in one process, eager and compiled, for
a small, a middle and a large head. A repetition is one timing of each loss; its ratio is PowerGrad over plain. Prints
the medians with quartiles and writes every raw value, the versions and the hardware as JSON.

    python benchmarks/pgt.py --threads 1     # -> benchmarks/results/pgt-cpu.json
    python benchmarks/pgt.py --device cuda   # -> benchmarks/results/pgt-cuda.json
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import sections
from backpass.pgt import power_grad_cross_entropy
from tools import environment_of, write_json

ALPHA = 0.25
SHAPES = [(128, 100), (256, 1000), (4096, 32000)]
SECONDS_A_TIMING = 0.02

Loss = Callable[[Tensor, Tensor], Tensor]


def plain(input: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(input, target)


def power_grad(input: Tensor, target: Tensor) -> Tensor:
    return power_grad_cross_entropy(input, target, alpha=ALPHA)


def seconds_a_step(loss: Loss, input: Tensor, target: Tensor, steps: int) -> float:
    """Return the mean seconds of a forward and backward pass over ``steps`` of them."""
    synchronize = torch.cuda.synchronize if input.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        input.grad = None
        loss(input, target).backward()
    synchronize()
    return (time.perf_counter() - start) / steps


def measure(shape: tuple[int, int], compiled: bool, device: str, repetitions: int) -> dict[str, Any]:
    """Return the timings of both losses on logits of ``shape``, taken in turn."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(shape, generator=generator).to(device).requires_grad_()
    target = torch.randint(shape[1], shape[:1], generator=generator).to(device)
    losses: dict[str, Loss] = {"plain": plain, "power_grad": power_grad}
    if compiled:
        torch.compiler.reset()
        losses = {name: torch.compile(loss, fullgraph=True, dynamic=False) for name, loss in losses.items()}
    for loss in losses.values():
        seconds_a_step(loss, input, target, 3)
    steps = max(1, round(SECONDS_A_TIMING / seconds_a_step(losses["plain"], input, target, 3)))
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for repetition in range(repetitions):
        order = list(losses) if repetition % 2 == 0 else list(reversed(losses))
        for name in order:
            seconds[name].append(seconds_a_step(losses[name], input, target, steps))
    return {"shape": shape, "compiled": compiled, "steps_a_timing": steps, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--output", type=Path, help="default: results/pgt-DEVICE.json next to this script")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    # Once 30 MB have come and gone, as in any training process, glibc keeps freed memory of this size. Until then every
    # megabyte is fetched again from the system, and the timings of the middle head are those of its page faults.
    torch.empty(30 * 2**20, dtype=torch.uint8)
    output = options.output or Path(__file__).parent / "results" / f"pgt-{options.device}.json"
    evidence: dict[str, Any] = {"environment": environment_of(), "alpha": ALPHA, "results": []}
    for compiled, shape in itertools.product((False, True), SHAPES):
        evidence["results"].append(measure(shape, compiled, options.device, options.repetitions))
        write_json(output, evidence)
    print(sections.power_grad(evidence))


if __name__ == "__main__":
    main()
