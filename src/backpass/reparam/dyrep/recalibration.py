"""Measuring the running statistics of some batch normalisations again, on a few batches."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from backpass._internal.batches import Forward, forward_on
from backpass._internal.first_batches import reading
from backpass._internal.modes import eval_mode
from backpass._internal.random_state import keeping_global_states
from backpass._internal.several_processes import several_processes
from backpass.errors import InputError
from backpass.reparam.blocks.batch_norm import BatchNorm

__all__ = ["recalibrate"]


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    norms: Sequence[BatchNorm],
    batches: Iterable[Any],
    *,
    limit: int = 20,
    forward: Forward | None = None,
) -> None:
    """Set the running statistics of ``norms`` to their plain averages over ``batches``, and over all processes.

    The model runs in eval mode without gradients, with ``norms`` alone in train mode; modes and momenta are restored,
    also after an error.

    Args:
        model: contains ``norms``.
        norms: batch normalisations that keep running statistics.
        batches: input tensors, or tuples that start with one, such as ``(input, target)``. Reading a loader changes
            neither the order nor the augmentation of what is read next: random states are restored.
        limit: number of batches to take, 20 in DyRep's published settings.
        forward: runs the model on a batch of any other form. Default: ``model(input)``, on the model's device.

    Raises:
        InputError: there is no batch, or a tensor instead of batches; a batch does not start with a tensor; or no batch
            reaches a normalisation.
    """
    momenta = [norm.momentum for norm in norms]
    device = next(model.parameters()).device
    run = forward_on(model, device) if forward is None else forward
    devices = [device] if device.type == "cuda" else []
    try:
        with keeping_global_states(devices), eval_mode(model):
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None
            with reading(batches):  # one by one, since they may not fit in memory together
                for batch in islice(batches, limit):
                    run(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    unreached = sum(not bool(norm.num_batches_tracked) for norm in norms)
    if unreached:
        raise InputError(
            f"expected batches that reach all {len(norms)} normalisations to recalibrate, got some that reach "
            f"{len(norms) - unreached}; pass at least one batch on which the model uses all of them, or "
            "forward=, a function that runs the model so that it does in eval mode, also its auxiliary heads"
        )
    if several_processes():
        for norm in norms:
            for statistic in (cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)):
                dist.all_reduce(statistic)
                statistic.div_(dist.get_world_size())
