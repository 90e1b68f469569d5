"""Precisions and ``torch.compile``."""

from functools import partial
from typing import Any

import torch

from battery.loop import Loop
from works_with.case import Case
from works_with.rows import loop

AMP = Loop(dtype=torch.float32, autocast=torch.float16, loss_scale=2.0**10)
aot = partial(torch.compile, fullgraph=True, backend="aot_eager")


def precisions() -> list[Case]:
    """Return the cases of number formats."""
    return [
        loop("float32", Loop(dtype=torch.float32)),
        loop("float64", Loop()),
        loop("bfloat16 parameters", Loop(dtype=torch.bfloat16, steps=1)),
        loop(
            "bfloat16 parameters, float32 images under autocast",
            Loop(dtype=torch.bfloat16, images=torch.float32, autocast=torch.bfloat16, steps=1),
        ),
        loop("bfloat16 autocast", Loop(dtype=torch.float32, autocast=torch.bfloat16)),
        loop("float16 autocast with `GradScaler`, after `unscale_`", AMP),
        loop("float16 autocast with `GradScaler`, before `unscale_`", AMP.but(unscale_first=False)),
    ]


def compiled() -> list[Case]:
    """Return the cases of ``torch.compile`` without a compiler of machine code."""
    return [
        loop("model, `fullgraph=True`", Loop(wrap=aot)),
        loop("model and loss, `fullgraph=True`", Loop(wrap=aot, wrap_criterion=aot)),
    ]


def compiled_step(parameters: Any) -> torch.optim.Optimizer:
    """Return an optimizer whose ``step`` is compiled."""
    torch.compiler.reset()
    optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9)
    optimizer.step = torch.compile(optimizer.step, backend="aot_eager")  # type: ignore[method-assign]
    return optimizer


def inductor() -> list[Case]:
    """Return the cases that take long to compile."""
    to_machine_code = partial(torch.compile, fullgraph=True)
    return [
        loop("model and loss, inductor", Loop(wrap=to_machine_code, wrap_criterion=to_machine_code)),
        loop("`optimizer.step`", Loop(optimizer=compiled_step)),
        loop("`optimizer.step`, attached", Loop(optimizer=compiled_step, how="attached")),
    ]
