"""Claim: measuring SGS costs about two forward passes, in bounded memory; applying it costs next to nothing.

On VGG-16-BN for CIFAR (13 kernels, float32), each measurement in a fresh process:

- ``update`` on 2 and on 20 batches of 128 images, and one forward pass over the same batches, taken in turn, and as
  a multiple of it. Added memory is the most that an update adds to
  the resident set (CPU) or to the allocated memory (CUDA) of a process that has run one small update already.
- ``scale_gradients`` inside whole training steps (forward, backward, scaling, SGD with momentum) at batch 32 and 128,
  with its own time as a share of the step's. On CUDA, where waiting for the device around the call would cost more
  than the call, that is the difference of steps with and without it, taken in turn in runs of 20.

Prints medians with quartiles and writes every raw value, the versions, the hardware and the load as JSON.

    python benchmarks/sgs.py                    # -> benchmarks/results/sgs-cpu.json
    python benchmarks/sgs.py --device cuda      # -> benchmarks/results/sgs-cuda.json
    python benchmarks/sgs.py --clock cpu        # one thread, timed in its own CPU seconds: for a machine that is busy
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import backpass
from sections import measuring
from tools import BATCH, Meter, environment_of, smooth_images, warmed_up, write_json

UPDATES = {2: 7, 20: 3}  # batches: repetitions
STEPS = {32: 30, 128: 10}  # batch size: training steps
IN_TURN = 20  # steps on CUDA that are timed together


def measure_update(batches: int, repetitions: int, meter: Meter) -> dict[str, Any]:
    model = warmed_up("vgg16_small", meter.device)
    sgs = backpass.SpatialGradientScaling(model)
    images = [smooth_images(BATCH, seed) for seed in range(batches)]

    @torch.no_grad()
    def forward() -> None:
        model.eval()
        for batch in images:
            model(batch.to(meter.device))

    result: dict[str, Any] = {"update": [], "forward": []}
    sgs.update(images[:1])
    forward()
    for _ in range(repetitions):
        result["forward"].append(meter.seconds(forward))
        result["update"].append(meter.seconds(lambda: sgs.update(images)))
    return result


def measure_memory(batches: int, repetitions: int, meter: Meter) -> dict[str, Any]:
    model = warmed_up("vgg16_small", meter.device)
    sgs = backpass.SpatialGradientScaling(model)
    images = [smooth_images(BATCH, seed) for seed in range(batches)]
    sgs.update([images[0][:2]])
    return {"memory_mb": [meter.added_memory(lambda: sgs.update(images)) for _ in range(repetitions)]}


def measure_step(batch_size: int, repetitions: int, meter: Meter) -> dict[str, Any]:
    model = warmed_up("vgg16_small", meter.device)
    sgs = backpass.SpatialGradientScaling(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = smooth_images(batch_size, 0).to(meter.device), torch.arange(batch_size, device=meter.device) % 10
    result: dict[str, Any] = {"scale": [], "step": []}

    def step(scale: Callable[[], object]) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        scale()
        optimizer.step()

    def scale_timed() -> None:
        result["scale"].append(meter.seconds(sgs.scale_gradients))

    def many(scale: Callable[[], object]) -> None:
        for _ in range(IN_TURN):
            step(scale)

    for _ in range(repetitions + 2):
        if meter.device == "cuda":
            plain = meter.seconds(lambda: many(lambda: None))
            scaled = meter.seconds(lambda: many(sgs.scale_gradients))
            result["scale"].append((scaled - plain) / IN_TURN)
            result["step"].append(scaled / IN_TURN)
        else:
            result["step"].append(meter.seconds(lambda: step(scale_timed)))
    return {name: values[2:] for name, values in result.items()}  # the first two warm up


MEASUREMENTS = {"update": measure_update, "memory": measure_memory, "step": measure_step}


def in_fresh_process(kind: str, size: int, repetitions: int, device: str, clock: str) -> dict[str, Any]:
    """Return the measurement with the load average it began under."""
    load = os.getloadavg()[0]
    measurement = ["--measure", kind, str(size), str(repetitions)]
    command = [sys.executable, __file__, "--device", device, "--clock", clock, *measurement]
    # Without the threshold, glibc's malloc keeps freed maps, and the peak would be a record of its habits.
    environ = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "1000000"} if kind == "memory" else {})
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"size": size, "load": load} | measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--output", type=Path, help="default: results/sgs-DEVICE.json next to this script")
    parser.add_argument("--measure", nargs=3, metavar=("KIND", "SIZE", "REPETITIONS"), help="one measurement, in here")
    options = parser.parse_args()
    if options.device == "cuda" and options.clock == "cpu":
        parser.error("--clock cpu times work on the CPU alone; use --clock wall with --device cuda")
    if options.measure:
        kind, size, repetitions = options.measure
        if options.clock == "cpu":
            torch.set_num_threads(1)
        meter = Meter(options.device, options.clock)
        print(json.dumps(MEASUREMENTS[kind](int(size), int(repetitions), meter) | {"threads": torch.get_num_threads()}))
        return

    output = options.output or Path(__file__).parent / "results" / f"sgs-{options.device}.json"
    evidence: dict[str, Any] = {"environment": environment_of(), "clock": options.clock, "update": [], "step": []}
    for batches, repetitions in UPDATES.items():
        result = in_fresh_process("update", batches, repetitions, options.device, options.clock)
        memory = in_fresh_process("memory", batches, 2, options.device, options.clock)["memory_mb"]
        evidence["update"].append(result | {"memory_mb": memory})
        write_json(output, evidence)

    for batch_size, repetitions in STEPS.items():
        result = in_fresh_process("step", batch_size, repetitions, options.device, options.clock)
        pairs = zip(result["scale"], result["step"], strict=True)
        evidence["step"].append(result | {"scale_share": [scale / step for scale, step in pairs]})
        write_json(output, evidence)
    print(measuring(evidence))


if __name__ == "__main__":
    main()
