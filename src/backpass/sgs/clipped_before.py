"""Gradients that were clipped before an attached optimizer scales them."""

import warnings

import torch
from torch import Tensor
from torch.optim import Optimizer

from backpass.errors import BackpassWarning

__all__ = ["ClippedBefore"]

_STEPS = 3
_SAME, _DIFFERENT = 1e-3, 1e-2  # relative


class ClippedBefore:
    """Looks at the first three attached steps: gradients clipped by their norm arrive with the same norm at each.

    Does not see clipping that bounds only some of these steps, by value or unit by unit, nor of sharded gradients, nor
    in a CUDA graph.
    """

    def __init__(self) -> None:
        self._norms: list[Tensor] = []  # of each gradient, by step
        self._done = False

    @torch.no_grad()
    def look(self, optimizer: Optimizer) -> None:
        """Look at the gradients of one step, before they are scaled.

        Warns:
            BackpassWarning: they have been clipped.
        """
        if self._done:
            return
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            self._done = True  # reading the norms would end the capture
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients or any(type(g) is not Tensor or g.is_sparse for g in gradients):
            self._done = True
            return
        self._norms.append(torch.stack([g.float().norm().cpu() for g in gradients]))
        if len(self._norms) < _STEPS:
            return
        self._done = True
        if len({len(norms) for norms in self._norms}) > 1:
            return
        norms = torch.stack(self._norms)
        total = norms.norm(dim=1)
        if _spread(total) < _SAME and float((norms / total[:, None]).std(0).max()) > _DIFFERENT:
            warnings.warn(
                f"the gradients come to step() with norm {float(total[0]):.4g} at each of {_STEPS} steps, so they were "
                "clipped before they are scaled, and the scaled norm is not bounded; instead of attach(), call "
                "scale_gradients() before clipping (Lightning, Transformers: see backpass.integrations)",
                BackpassWarning,
                stacklevel=3,
            )


def _spread(values: Tensor) -> float:
    return float((values.max() - values.min()) / values.mean().clamp(min=1e-30))
