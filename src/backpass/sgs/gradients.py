"""Scaling gradients: one multiplication for each kernel, once for each gradient."""

import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from backpass.errors import StateError
from backpass.sgs.distributed import local_part
from backpass.sgs.layers import ConvLayer
from backpass.sgs.scaling import laid_out

__all__ = ["GradientScaler"]


class GradientScaler:
    """Multiplies the gradients of kernels by their scalings, in place, and refuses to do it twice.

    A gradient counts as scaled until something writes to it, such as another backward pass or ``zero_grad``.
    """

    def __init__(self) -> None:
        # The gradient scaled last, weakly so that it can be freed, and its version, which every write counts up.
        self._scaled: dict[str, tuple[weakref.ref[Tensor], int]] = {}

    @torch.no_grad()
    def scale(self, layers: Mapping[str, ConvLayer], scalings: Mapping[str, Tensor]) -> None:
        """Scale the gradient of each layer that has one and is not scaled already.

        Raises:
            StateError: there are gradients, and all of them are scaled already.
        """
        gradients = {
            name: local_part(grad, name) for name, layer in layers.items() if (grad := layer.parameter.grad) is not None
        }
        fresh = {name: grad for name, grad in gradients.items() if not self._is_scaled(name, grad)}
        if gradients and not fresh:
            raise StateError(
                "expected gradients of a new backward pass, got those that are scaled already; call scale_gradients() "
                "once per step, after backward(), and clear the gradients with optimizer.zero_grad() after each step"
            )
        for name, grad in fresh.items():
            grad.mul_(laid_out(scalings[name], grad))
        # Only now, since gradients that are views of one buffer count their writes together.
        self._scaled.update({name: (weakref.ref(grad), grad._version) for name, grad in fresh.items()})

    def _is_scaled(self, name: str, grad: Tensor) -> bool:
        if name not in self._scaled:
            return False
        last, version = self._scaled[name]
        return last() is grad and version == grad._version
