"""Scaling updates: what an optimizer adds to the kernels, apart from decoupled weight decay."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from backpass._internal.attachment import held_by
from backpass._internal.inner_optimizer import inner_optimizer
from backpass.errors import StateError
from backpass.sgs.distributed import local_part
from backpass.sgs.layers import ConvLayer
from backpass.sgs.scaling import laid_out
from backpass.sgs.weight_decay import decay_factor

__all__ = ["Update", "scaled_updates"]

_in_context: set[int] = set()  # kernels, by id, whose updates a context scales now


class Update:
    """One update of some kernels, from before the optimizer's step until it is scaled.

    With ``w`` a kernel before the step, ``d`` what decoupled weight decay multiplies it with
    (:func:`backpass.sgs.weight_decay.decay_factor`, 1 without) and ``v`` the kernel after the step, the kernel becomes
    ``d * w + G * (v - d * w)``. Holds one copy of the kernels.

    Raises:
        StateError: inside a context that scales the updates of some of these kernels, which would count twice.
    """

    def __init__(self, layers: Mapping[str, ConvLayer]) -> None:
        if any(id(layer.parameter) in _in_context for layer in layers.values()):
            raise StateError(
                "scaled_update() is running already, and scaling inside it would count twice; step inside one "
                "scaled_update(), or in an attached optimizer without it"
            )
        self._layers = {name: layer for name, layer in layers.items() if layer.parameter.requires_grad}
        self._start = {name: _kernel(layer).clone() for name, layer in self._layers.items()}
        self._inside: list[set[str]] = []  # kernels decayed inside each of the steps that are running, the last within

    def begin_step(self) -> None:
        """Note that a step begins, inside which others may step the same kernels: ZeRO's own, or ``super().step()``."""
        self._inside.append(set())

    def decay(self, optimizer: Optimizer) -> None:
        """Decay the kernels before the step as the optimizer, which has just made it, has decayed them in it."""
        counted = self._inside.pop() if self._inside else set()
        if inner_optimizer(optimizer) is not optimizer:
            return  # the optimizer inside calls this itself
        factors = {
            id(parameter): decay_factor(optimizer, group)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None  # the others are not decayed either
        }
        for name, layer in self._layers.items():
            factor = factors.get(id(layer.parameter), 1.0)
            if name not in counted and (isinstance(factor, Tensor) or factor != 1):
                start = self._start[name]
                # Unmoved: ADOPT and SOAP leave out their first step, a fused optimizer one whose gradients overflow.
                self._start[name] = torch.where((_kernel(layer) != start).any(), start * factor, start)
                for around in self._inside:
                    around.add(name)

    def leave_out(self, names: Iterable[str]) -> None:
        """Leave the kernels of these names to another update, inside the step of this one."""
        for name in names:
            self._layers.pop(name, None)
            self._start.pop(name, None)

    def moved(self) -> set[str]:
        """Return the names of the kernels that have moved; waits for the device."""
        return {name for name, layer in self._layers.items() if not torch.equal(_kernel(layer), self._start[name])}

    @torch.no_grad()
    def scale(self, scalings: Mapping[str, Tensor]) -> None:
        """Write the scaled update to the kernels."""
        for name, layer in self._layers.items():
            kernel, start = _kernel(layer), self._start[name]
            dtype = torch.promote_types(kernel.dtype, torch.float32)
            kernel.copy_(torch.lerp(start.to(dtype), kernel.to(dtype), laid_out(scalings[name], kernel).to(dtype)))


@contextmanager
def scaled_updates(
    layers: Mapping[str, ConvLayer], scalings: Mapping[str, Tensor]
) -> Iterator[tuple[list[Optimizer], set[str]]]:
    """Scale what optimizers add to the kernels of ``layers`` in the code inside; after an exception, nothing.

    Yields two collections that it fills: the optimizers that have made a step on some of the kernels, and the names of
    the kernels that these hold; or, at the end, of those that moved, if no optimizer was seen to step them.

    Raises:
        StateError: inside another such context.
    """
    update = Update(layers)
    stepped: list[Optimizer] = []
    scaled: set[str] = set()

    def before_step(*_: object) -> None:
        update.begin_step()

    def after_step(optimizer: Optimizer, *_: object) -> None:
        update.decay(optimizer)
        held = held_by(optimizer)
        if names := {name for name, layer in layers.items() if id(layer.parameter) in held}:
            stepped.append(optimizer)
            scaled.update(names)

    kernels = {id(layer.parameter) for layer in layers.values()}
    _in_context.update(kernels)
    hooks = [register_optimizer_step_pre_hook(before_step), register_optimizer_step_post_hook(after_step)]
    try:
        yield stepped, scaled
    finally:
        _in_context.difference_update(kernels)
        for hook in hooks:
            hook.remove()
    if not stepped:
        scaled.update(update.moved())
    update.scale(scalings)


def _kernel(layer: ConvLayer) -> Tensor:
    return local_part(layer.parameter.detach(), layer.name)
