"""Adaptive gradient clipping: bound each unit's gradient by a share of the unit's own norm (arXiv 2102.06171)."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import Optimizer

from backpass._internal.attachment import Attachment, Attachments, held_by, refuse_closure
from backpass.errors import InputError, NoEffectWarning, StateError

__all__ = ["AdaptiveGradientClipping", "adaptive_clip_grad_", "unitwise_norm"]

_MIN_GRADIENT_NORM = 1e-6


def unitwise_norm(tensor: Tensor, *, transposed_groups: int | None = None) -> Tensor:
    """Return the Euclidean norm of each unit of a parameter or its gradient, in at least float32.

    ========================================  ===========================================================
    shape                                     units
    ========================================  ===========================================================
    one axis longer than 1, or none           the whole tensor: biases, gains such as (C,) or (C, 1, 1, 1)
    linear (out, in), embedding (rows, size)  rows
    conv (out, in / groups, taps...)          filters, one for each output channel
    transposed conv (in, out / groups, ...)   output channels: the inputs of the channel's group, all taps
    ========================================  ===========================================================

    Args:
        tensor: any shape, floating point.
        transposed_groups: the groups of the transposed convolution whose kernel this is; default: not such a kernel.

    Returns:
        Norms, of as many axes as ``tensor``, that broadcast against it.

    >>> unitwise_norm(torch.tensor([[3.0, 4.0], [5.0, 12.0]])).flatten()
    tensor([ 5., 13.])
    >>> unitwise_norm(torch.tensor([3.0, 4.0]))
    tensor([5.])
    """
    whole = sum(size != 1 for size in tensor.shape) <= 1
    dims = tuple(range(0 if whole else 1, tensor.ndim))
    inputs = None
    if transposed_groups is not None and not whole:
        inputs = tensor.shape[0] // transposed_groups
        tensor = tensor.reshape(transposed_groups, inputs, *tensor.shape[1:])
        dims = (1, *range(3, tensor.ndim))
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True, dtype=dtype)
    return norm if inputs is None else norm.repeat_interleave(inputs, dim=1).flatten(0, 1)


@torch.no_grad()
def adaptive_clip_grad_(
    model_or_params: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
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
    momentum. Parameters without a gradient are skipped. The weights of the head, but not its bias, are left alone.
    Parameters sharded as DTensors (FSDP2) are clipped by the norms of whole units, so every rank has to call it.

    Args:
        model_or_params: the model; or its parameters, or (name, parameter) pairs as of ``named_parameters()``. Among
            parameters neither a head nor transposed convolutions can be told: ``head`` must be ``None``, and units
            lie along the first axis.
        clip_factor: the largest share, above 0; default 0.01 (paper, batches of 1024 to 4096; smaller batches want
            a larger one).
        eps: the floor of |W_i|, above 0, without which a unit that starts at zero never moves; default 1e-3 (paper).
        head: qualified name of the module whose weights stay unclipped; ``"auto"`` (default) is the last
            ``nn.Linear`` in module order, if there is one; ``None`` clips every parameter.
        error_if_nonfinite: raise on a gradient that is not finite (default), before any gradient is changed. This
            waits for the device. With ``False`` such a unit stays non-finite, for a ``GradScaler`` to see.

    Returns:
        For each parameter with a gradient, by name (its position where parameters came without names): the share of
        its units that was clipped, a float32 scalar tensor on the parameter's device.

    Raises:
        InputError: an option is out of its range, the head is not found, or a gradient is sparse.
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
    _check_positive("clip_factor", clip_factor)
    _check_positive("eps", eps)
    return _clip(_clipped_parameters(model_or_params, head), clip_factor, eps, error_if_nonfinite)


@torch.no_grad()
def _clip(
    parameters: Iterable["_Parameter"], clip_factor: float, eps: float, error_if_nonfinite: bool
) -> dict[str, Tensor]:
    clips = []
    for parameter in parameters:
        gradient = parameter.tensor.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            raise InputError(
                f"{parameter.name} has a sparse gradient of shape {tuple(gradient.shape)}; adaptive clipping needs a "
                "dense one: build the embedding with sparse=False, or pass only the other parameters."
            )
        norm = unitwise_norm(gradient, transposed_groups=parameter.transposed_groups)
        clips.append((parameter, gradient, norm))
    if error_if_nonfinite:
        _check_finite([(parameter.name, norm) for parameter, _, norm in clips])
    shares = {}
    for parameter, gradient, norm in clips:
        weight_norm = unitwise_norm(parameter.tensor, transposed_groups=parameter.transposed_groups)
        limit = clip_factor * weight_norm.clamp(min=eps)
        factor = (limit / norm.clamp(min=_MIN_GRADIENT_NORM)).clamp(max=1.0)
        gradient.mul_(factor)
        shares[parameter.name] = _unsharded((factor < 1).float().mean())
    return shares


class AdaptiveGradientClipping:
    """:func:`adaptive_clip_grad_` for one model, by a call in the loop or attached to an optimizer.

    Args:
        model: the model whose gradients are clipped.
        clip_factor: as in the function.
        eps: as in the function.
        head: as in the function.
        error_if_nonfinite: as in the function.

    Raises:
        InputError: an option is out of its range, or the head is not found.

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
        _check_positive("clip_factor", clip_factor)
        _check_positive("eps", eps)
        if not _clipped_parameters(model, head):
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
        self._shares: dict[str, Tensor] = {}
        self._attachments = Attachments()

    def clip_gradients(self) -> None:
        """Clip the gradients in place: after ``backward`` and unscaling, before ``step``."""
        self._shares = self._clip(_clipped_parameters(self.model, self.head))

    def _clip(self, parameters: Iterable["_Parameter"]) -> dict[str, Tensor]:
        return _clip(parameters, self.clip_factor, self.eps, self.error_if_nonfinite)

    @property
    def clipped_share(self) -> dict[str, float]:
        """The share of clipped units in the last call, by parameter name; reading it waits for the device."""
        return {name: share.item() for name, share in self._shares.items()}

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Clip at every ``optimizer.step()`` from now on, without a call in the loop.

        Only what the optimizer holds at that step is clipped, so that several optimizers can share a model: attach to
        each.

        Returns:
            A handle whose ``remove()`` ends it, as does leaving its ``with`` block; :meth:`remove` ends all.

        Raises:
            StateError: attached to this optimizer already. Or later, when ``step`` is given a closure: its gradients
                come after the hook; call ``clip_gradients()`` at its end instead. Or when a ``GradScaler``
                leaves unscaling to a fused step, which comes after the hook too: call ``scaler.unscale_(optimizer)``
                first.

        Warns:
            NoEffectWarning: the optimizer holds nothing yet that is clipped.
        """

        def clip(stepping: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            refuse_closure(args, kwargs, "clip_gradients()")
            if getattr(stepping, "grad_scale", None) is not None:  # set by a GradScaler for a fused step to divide by
                raise StateError(
                    "the gradients still carry the GradScaler's loss scale; call scaler.unscale_(optimizer) before "
                    "scaler.step(optimizer), since a fused step unscales after this hook."
                )
            self._shares |= self._clip(self._held_by(stepping))

        return self._attachments.add(optimizer, clip, has_effect=bool(self._held_by(optimizer)))

    def _held_by(self, optimizer: Optimizer) -> list["_Parameter"]:
        held = held_by(optimizer)
        return [p for p in _clipped_parameters(self.model, self.head) if id(p.tensor) in held]

    def remove(self) -> None:
        """Detach from every optimizer; gradients are plain from the next step on."""
        self._attachments.remove()


@dataclass(frozen=True)
class _Parameter:
    name: str
    tensor: Tensor
    transposed_groups: int | None = None


def _clipped_parameters(
    model_or_params: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]], head: str | None
) -> list[_Parameter]:
    """Return every parameter but the weights of the head, each once, in order."""
    if isinstance(model_or_params, nn.Module):
        excluded = _head_weights(model_or_params, head)
        groups = _transposed_groups(model_or_params)
        return [
            _Parameter(name, tensor, groups.get(id(tensor)))
            for name, tensor in model_or_params.named_parameters()
            if id(tensor) not in excluded
        ]
    if head is not None:
        raise InputError(
            f"head={head!r} is looked up in a module, got {type(model_or_params).__name__}; pass the model, or "
            "head=None to clip every parameter given."
        )
    items: Iterable[Tensor | tuple[str, Tensor]] = model_or_params
    if isinstance(model_or_params, Tensor):
        items = [model_or_params]
    return [
        _Parameter(str(position), item) if isinstance(item, Tensor) else _Parameter(*item)
        for position, item in enumerate(items)
    ]


def _head_weights(model: nn.Module, head: str | None) -> set[int]:
    if head is None:
        return set()
    modules = dict(model.named_modules())
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if head == "auto":
        if not linears:
            return set()
        head = linears[-1]
    if head not in modules:
        raise InputError(
            f"head={head!r} is no module of {type(model).__name__}; its linear layers are "
            f"{', '.join(map(repr, linears)) or 'none'}. Name a module as model.named_modules() does, or pass None."
        )
    return {id(tensor) for name, tensor in modules[head].named_parameters() if name != "bias"}


def _transposed_groups(model: nn.Module) -> dict[int, int]:
    return {
        id(tensor): module.groups
        for module in model.modules()
        if isinstance(module, _ConvTransposeNd)
        for tensor in module.parameters()
        if tensor.ndim > 1
    }


def _check_finite(norms: list[tuple[str, Tensor]]) -> None:
    if not norms:
        return
    device = norms[0][1].device
    finite = torch.stack([_unsharded(norm.isfinite().all()).to(device) for _, norm in norms])
    if not finite.all():
        name = norms[finite.tolist().index(False)][0]
        raise StateError(
            f"the gradient of {name} is not finite ({int((~finite).sum())} of {len(norms)} parameters are affected); "
            "lower the learning rate or look for the layer that overflows. Under a GradScaler, which skips such a "
            "step itself, pass error_if_nonfinite=False."
        )


def _unsharded(tensor: Tensor) -> Tensor:
    """Return the plain tensor of a DTensor, as of FSDP2, and any other tensor as it is."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{name} must be a finite number above 0, got {value}.")
