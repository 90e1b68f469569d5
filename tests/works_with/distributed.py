"""Two processes on gloo: every form ends where one process on the union of the batches ends."""

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backpass.errors import BackpassError, BackpassWarning, StateError
from battery.loop import MAX_NORM, Loop, net
from battery.rows import Criterion, Method, Row
from works_with.case import Case, Way, strictly
from works_with.rows import PGT, SGS, SGS_UPDATE

ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5)
SETTING = Loop(build=lambda: net().eval(), optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9))
PROCESSES = 2
Form = Callable[[Criterion, Callable[[nn.Module], Method], int], Mapping[str, Tensor]]


def train(
    criterion: Criterion,
    make: Callable[[nn.Module], Method],
    rank: int,
    *,
    wrap: Callable[[nn.Module], nn.Module],
    parts: int = 1,
    clip: bool = False,
    attach: bool = False,
    optimizer: Callable[..., Any] = SETTING.optimizer,
) -> Mapping[str, Tensor]:
    """Train this process's half of each batch; return the whole parameters."""
    inner = SETTING.new_model()
    model = wrap(inner)
    method = make(model)
    method.measure([SETTING.batch(100)[0].chunk(PROCESSES)[rank]])
    stepping = optimizer(model.parameters())
    if attach:
        method.attach(stepping)
    for seed in range(2):
        x, y = (half.chunk(PROCESSES)[rank] for half in SETTING.batch(seed))
        stepping.zero_grad()
        for part in range(parts):
            # Processes exchange gradients in the last backward pass of a step alone.
            alone = isinstance(model, DistributedDataParallel) and part < parts - 1
            with model.no_sync() if alone else nullcontext():
                (criterion(model(x.chunk(parts)[part]), y.chunk(parts)[part]) / parts).backward()
        if not attach:
            method.scale()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        with nullcontext() if attach else method.around_step(stepping):
            stepping.step()
    with type(model).summon_full_params(model) if wrap is fsdp1 else nullcontext():
        return {name: _whole(parameter) for name, parameter in inner.named_parameters()}


def _whole(parameter: Tensor) -> Tensor:
    whole: Tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return whole.detach().clone()


def fsdp1(model: nn.Module) -> nn.Module:
    """Wrap in the older FSDP, which flattens parameters."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def fsdp2(model: nn.Module, **options: Any) -> nn.Module:
    """Shard each parameter."""
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, **options)
    return model


def zero(parameters: Any) -> torch.optim.Optimizer:
    """Return SGD whose state is sharded."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(list(parameters), torch.optim.SGD, lr=0.5, momentum=0.9)


def zero_adamw(parameters: Any) -> torch.optim.Optimizer:
    """Return AdamW whose state is sharded."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(list(parameters), torch.optim.AdamW, lr=0.01, weight_decay=0.5)


ddp = DistributedDataParallel
FORMS: dict[str, Form] = {
    "DDP": partial(train, wrap=ddp),
    "DDP, accumulation under `no_sync`": partial(train, wrap=ddp, parts=2),
    "DDP, `clip_grad_norm_`": partial(train, wrap=ddp, clip=True),
    "DDP, `gradient_as_bucket_view=True`": partial(train, wrap=partial(ddp, gradient_as_bucket_view=True)),
    "DDP, attached": partial(train, wrap=ddp, attach=True),
    "DDP, `ZeroRedundancyOptimizer`": partial(train, wrap=ddp, optimizer=zero),
    "DDP, `ZeroRedundancyOptimizer` of AdamW": partial(train, wrap=ddp, optimizer=zero_adamw),
    "FSDP2 (`fully_shard`)": partial(train, wrap=fsdp2),
    "FSDP2, `clip_grad_norm_`": partial(train, wrap=fsdp2, clip=True),
    "FSDP2, attached": partial(train, wrap=fsdp2, attach=True),
    "FSDP2, `reshard_after_forward=False`": partial(train, wrap=partial(fsdp2, reshard_after_forward=False)),
    "FSDP1 (`FullyShardedDataParallel`)": partial(train, wrap=fsdp1),
}


def cases() -> list[Case]:
    """Return the cases of forms of distributed training."""
    return [
        Case(
            name,
            [Way('`apply="update"`' if row is SGS_UPDATE else "", partial(check, name, row))],
            [Way("", partial(check, name, PGT))],
        )
        for name, row in forms()
        if row is not PGT
    ]


def forms() -> list[tuple[str, Row]]:
    """Return each form with each method that trains in it."""
    return [(name, row) for name in FORMS for row in (SGS_UPDATE if "AdamW" in name else SGS, PGT)]


def _setting(form: str) -> Loop:
    """Return the setting of one process that the form must equal."""
    setting = SETTING.but(clip="after" if "clip" in form else None)
    return setting.but(optimizer=ADAMW) if "AdamW" in form else setting


def check(form: str, row: Row) -> None:
    """Raise what the processes raised for a form and a method.

    Raises:
        StateError: the method refused.
        AssertionError: it did not, and the result is wrong.
    """
    for refusal, wrong in results()[f"{row.name}: {form}"]:
        if refusal:
            raise StateError(refusal)
        if wrong:
            raise AssertionError(f"{form}: {wrong}")


@cache
def results() -> dict[str, list[tuple[str, str]]]:
    """Return, by method and form, the refusal and the failure of each process; all in one start of them."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (folder,), nprocs=PROCESSES)
        ranks = [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(PROCESSES)]
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    # The references, before there are processes: on the whole batches.
    expected: dict[tuple[str, Loop], tuple[Any, list[Any]]] = {}
    for name, row in forms():
        setting = _setting(name)
        if (row.name, setting) not in expected:
            expected[row.name, setting] = (
                setting.run(row.loss.definition, row.definition).state,
                [setting.run(other.loss.ours, other.ours).state for other in row.without_one_part()],
            )
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=PROCESSES)
    found = {}
    for name, row in forms():
        found[f"{row.name}: {name}"] = _outcome(row, FORMS[name], rank, *expected[row.name, _setting(name)])
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads can abort a process that takes Python down while they still run


def _outcome(row: Row, form: Form, rank: int, expected: Any, controls: list[Any]) -> tuple[str, str]:
    try:
        with strictly():
            weights = form(row.loss.ours, row.ours, rank)
    except (BackpassError, BackpassWarning) as refusal:
        return str(refusal), ""
    names = list(weights)
    try:
        torch.testing.assert_close(weights, {name: expected[name] for name in names}, rtol=1e-7, atol=1e-9)
        for control in controls:
            with pytest.raises(AssertionError):
                torch.testing.assert_close(weights, {name: control[name] for name in names}, rtol=1e-7, atol=1e-9)
    except (AssertionError, pytest.fail.Exception) as wrong:
        return "", str(wrong) or "equals plain training"
    return "", ""
