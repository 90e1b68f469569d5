"""Adaptive gradient clipping of a model, by a call or attached to an optimizer (Brock et al., arXiv 2102.06171)."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from backpass._internal.attachment import Attachment, Attachments, held_by, refuse_closure
from backpass._internal.settings import POSITIVE, check_number
from backpass.agc.clipped_parameters import ClippedParameter, Parameters, clipped_parameters
from backpass.agc.unitwise import clip_factors, unitwise_norm
from backpass.errors import InputError, NoEffectWarning, StateError

__all__ = ["AdaptiveGradientClipping", "adaptive_clip_grad_"]


def adaptive_clip_grad_(
    model_or_params: nn.Module | Parameters,
    clip_factor: float = 0.01,
    eps: float = 1e-3,
    *,
    head: str | None = "auto",
    error_if_nonfinite: bool = True,
) -> dict[str, Tensor]:
    """Clip in place the gradient of each unit to ``clip_factor`` times the unit's own norm; return what was clipped.

    For each unit i with weights W_i and gradient G_i (see :func:`unitwise_norm`)::

        G_i <- G_i * min(1, clip_factor * max(|W_i|, eps) / max(|G_i|, 1e-6))

    Call it on averaged and unscaled gradients, after ``backward`` and before ``step``, so before weight decay and
    momentum. Parameters without a gradient are skipped. The weights of the head, but not its biases and gains, stay
    unclipped.
    Parameters sharded as DTensors (FSDP2) are clipped by the norms of whole units, so every rank has to call it.

    Args:
        model_or_params: the model; or its parameters, or (name, parameter) pairs as of ``named_parameters()``. Bare
            parameters show neither a head nor transposed convolutions: ``head`` must be ``None``, and units lie along
            the first axis.
        clip_factor: the largest ratio of the two norms, above 0; default 0.01 (paper, batches of 1024 to 4096; smaller
            batches need a larger one).
        eps: the floor of ``|W_i|``, above 0, without which a unit that starts at zero never moves; default 1e-3
            (paper).
        head: qualified name of the module whose weights stay unclipped, a layer or several: all of its parameters with
            more than one axis. ``"auto"`` (default) is the last ``nn.Linear`` in module order, if there is one;
            ``None`` clips every parameter. Names here and in the result are those of the model inside
            ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``.
        error_if_nonfinite: raise on a gradient that is not finite (default), before any gradient is changed. This
            waits for the device. With ``False`` such a unit stays non-finite, for a ``GradScaler`` to see.

    Returns:
        For each parameter with a gradient, by name (its position where parameters came without names): the fraction of
        its units that was clipped, a float32 scalar tensor on the parameter's device.

    Raises:
        InputError: an option is out of its range, the head is not found, the model is under flat-parameter FSDP1, or
            a gradient is sparse.
        StateError: a gradient is not finite; the message names the first such parameter.

    Source: Brock et al., arXiv 2102.06171, section 4; gains count as one unit, as in its published code.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> layer.weight.grad = torch.tensor([[0.0, 2.0]])
    >>> adaptive_clip_grad_(layer, clip_factor=0.1, head=None)
    {'weight': tensor(1.)}
    >>> layer.weight.grad
    tensor([[0.0000, 0.5000]])
    """
    _check_options(clip_factor, eps)
    return _clip(clipped_parameters(model_or_params, head), clip_factor, eps, error_if_nonfinite)


@torch.no_grad()
def _clip(
    parameters: Iterable[ClippedParameter], clip_factor: float, eps: float, error_if_nonfinite: bool
) -> dict[str, Tensor]:
    clips = []
    for parameter in parameters:
        gradient = parameter.tensor.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            raise InputError(
                f"expected dense gradients, got a sparse one of shape {tuple(gradient.shape)} in {parameter.name}; "
                "build the embedding with sparse=False, or pass only the other parameters"
            )
        norm = unitwise_norm(gradient, transposed_groups=parameter.transposed_groups)
        clips.append((parameter, gradient, norm))
    if error_if_nonfinite:
        _check_finite([(parameter.name, norm) for parameter, _, norm in clips])
    clipped = {}
    for parameter, gradient, norm in clips:
        weight_norm = unitwise_norm(parameter.tensor, transposed_groups=parameter.transposed_groups)
        factors = clip_factors(weight_norm, norm, clip_factor, eps)
        gradient.mul_(factors)
        clipped[parameter.name] = _unsharded((factors < 1).float().mean())
    return clipped


class AdaptiveGradientClipping:
    """:func:`adaptive_clip_grad_` for one model, by a call in the loop or attached to an optimizer.

    Args:
        model: the model whose gradients are clipped.
        clip_factor: as in the function.
        eps: as in the function.
        head: as in the function.
        error_if_nonfinite: as in the function.

    Raises:
        InputError: an option is out of its range, no model, the head is not found, or the model is under
            flat-parameter FSDP1.

    Warns:
        NoEffectWarning: the model has no parameter outside its head.
    """

    def __init__(
        self,
        model: nn.Module,
        clip_factor: float = 0.01,
        eps: float = 1e-3,
        *,
        head: str | None = "auto",
        error_if_nonfinite: bool = True,
    ) -> None:
        _check_options(clip_factor, eps)
        if not isinstance(model, nn.Module):
            raise InputError(
                f"expected a torch.nn.Module, got {type(model).__name__}; pass the model, or call "
                "adaptive_clip_grad_() with its parameters at each step"
            )
        if not clipped_parameters(model, head):
            warnings.warn(
                f"{type(model).__name__} has no parameter to clip outside its head; head=None clips the head too",
                NoEffectWarning,
                stacklevel=2,
            )
        self.model = model
        self.clip_factor = clip_factor
        self.eps = eps
        self.head = head
        self.error_if_nonfinite = error_if_nonfinite
        self._clipped: dict[str, Tensor] = {}
        self._attachments = Attachments("AdaptiveGradientClipping")

    def clip_gradients(self) -> None:
        """Clip the gradients in place: after ``backward`` and unscaling, before ``step``."""
        self._clipped = self._clip(clipped_parameters(self.model, self.head))

    def _clip(self, parameters: Iterable[ClippedParameter]) -> dict[str, Tensor]:
        return _clip(parameters, self.clip_factor, self.eps, self.error_if_nonfinite)

    @property
    def clipped_fraction(self) -> dict[str, float]:
        """The fraction of clipped units in the last call, by parameter name; reading it waits for the device."""
        return {name: fraction.item() for name, fraction in self._clipped.items()}

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Clip at every ``optimizer.step()`` from now on, without a call in the loop.

        Only what the optimizer holds at that step is clipped, so that several optimizers can share a model: attach to
        each.

        Returns:
            A handle; its ``remove()``, or leaving its ``with`` block, detaches. :meth:`remove` detaches all.

        Raises:
            StateError: this object, or another one on the same parameters, is attached already. Or later, when ``step``
                is given a closure: its gradients come after the hook; call ``clip_gradients()`` at its end instead. Or
                when a ``GradScaler`` leaves unscaling to a fused step, which comes after the hook too: call
                ``scaler.unscale_(optimizer)`` first.

        Warns:
            NoEffectWarning: the optimizer holds nothing yet that is clipped.
        """

        def clip(stepping: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            refuse_closure(args, kwargs, "clip_gradients()")
            if getattr(stepping, "grad_scale", None) is not None:  # set by a GradScaler for a fused step to divide by
                raise StateError(
                    "expected unscaled gradients, got gradients with the GradScaler's loss scale, which a fused step "
                    "removes after this hook; call scaler.unscale_(optimizer) before scaler.step(optimizer)"
                )
            self._clipped |= self._clip(self._held_by(stepping))

        return self._attachments.add(optimizer, self._parameters_in, clip)

    def _parameters_in(self, optimizer: Optimizer) -> set[int]:
        return {id(parameter.tensor) for parameter in self._held_by(optimizer)}

    def _held_by(self, optimizer: Optimizer) -> list[ClippedParameter]:
        held = held_by(optimizer)
        return [p for p in clipped_parameters(self.model, self.head) if id(p.tensor) in held]

    def remove(self) -> None:
        """Detach from every optimizer; gradients are plain from the next step on."""
        self._attachments.remove()


def _check_finite(norms: list[tuple[str, Tensor]]) -> None:
    if not norms:
        return
    device = norms[0][1].device
    finite = torch.stack([_unsharded(norm.isfinite().all()).to(device) for _, norm in norms])
    if not finite.all():
        name = norms[finite.tolist().index(False)][0]
        raise StateError(
            f"expected finite gradients, got NaN or infinity in {name} ({int((~finite).sum())} of {len(norms)} "
            "parameters are affected); lower the learning rate or look for the layer that overflows, or pass "
            "error_if_nonfinite=False under a GradScaler, which skips such a step itself"
        )


def _unsharded(tensor: Tensor) -> Tensor:
    """Return the plain tensor of a DTensor, as of FSDP2, and any other tensor unchanged."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def _check_options(clip_factor: float, eps: float) -> None:
    check_number("clip_factor", clip_factor, float, POSITIVE)
    check_number("eps", eps, float, POSITIVE)
