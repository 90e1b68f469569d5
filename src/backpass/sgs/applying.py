"""Applying scalings to gradients or updates: by a call in the loop, around a step, or attached to an optimizer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from backpass._internal.attachment import Attachment, Attachments, held_by, refuse_closure, warn_holds_nothing
from backpass._internal.inner_optimizer import inner_optimizer
from backpass.errors import StateError
from backpass.sgs.gradients import scale_gradients
from backpass.sgs.layers import ConvLayer
from backpass.sgs.misuse import Calls
from backpass.sgs.optimizers import warn_if_undone
from backpass.sgs.updates import Update, scaled_updates

__all__ = ["AppliedScalings"]


class AppliedScalings:
    """Scalings of kernels, and the ways to apply them.

    Args:
        apply: ``"gradient"`` or ``"update"``.

    Attributes:
        apply: the same.
        scalings: tensor of the kernel's spatial shape, by qualified parameter name.
    """

    scalings: dict[str, Tensor]
    _layers: dict[str, ConvLayer]
    _measured = False  # or given; until then, all scalings are one

    def __init__(self, apply: str) -> None:
        self.apply = apply
        self._calls = Calls()
        self._running: dict[int, Update] = {}  # by the id of the attached optimizer that steps
        clipping = ("AdaptiveGradientClipping",) if apply == "gradient" else ()
        self._attachments = Attachments("SpatialGradientScaling", ahead_of=clipping)
        self._warned_of_optimizer = False

    def scale_gradients(self, optimizer: Optimizer | None = None) -> None:
        """Multiply the gradient of each kernel by its scaling, in place; call after backward and before the step.

        Once per optimizer step, on accumulated gradients; before or after AMP's unscaling, since it is linear; before
        clipping, so that a clipped norm stays a bound. Kernels that are frozen or have no gradient are skipped. Where a
        CUDA graph computes the gradients, capture this call in it: a replay is not recognised as a new backward pass.

        Args:
            optimizer: scale only the kernels that it holds, where several optimizers step in turn; default: all.

        Raises:
            StateError: the gradients are scaled already, or were and have since been added to by another backward pass
                (:func:`backpass.sgs.gradients.scale_gradients`); or ``apply="update"``.

        Warns:
            NoEffectWarning: ``optimizer`` is given and undoes the scaling (:meth:`check_optimizer`), or holds none of
                the kernels.
            BackpassWarning: some gradients are new, and others are scaled twice, as above.
        """
        if self.apply == "update":
            raise StateError("expected apply='gradient', got apply='update'; use `with sgs.scaled_update():`")
        if attached := self._attachments.optimizers():
            raise StateError(
                f"attached to {type(attached[0]).__name__}, whose step() scales the gradients; leave out "
                "scale_gradients(), or remove() the attachment"
            )
        if optimizer is None:
            self._scale(self._layers)
        else:
            self._check(optimizer)
            held = self._held_by(inner_optimizer(optimizer))
            if not held:
                warn_holds_nothing(optimizer, "pass the optimizer that steps them", stacklevel=2)
            self._scale(held)

    def _scale(self, layers: Mapping[str, ConvLayer], stepping: Optimizer | None = None) -> None:
        found = scale_gradients(layers, self._placed_scalings(), stepping)
        self._calls.scaled(layers, plain=not self._measured, found=found)

    @contextmanager
    def scaled_update(self) -> Iterator[None]:
        """Scale what optimizers add to the kernels in the code inside.

        For ``apply="update"``: ``with sgs.scaled_update(): optimizer.step()``. A kernel becomes
        ``W_old + G * (W_stepped - W_old)``. Decoupled weight decay (of AdamW, Adafactor, Lion, Muon and others, and of
        groups with ``decoupled_weight_decay=True`` or such a key: :func:`backpass.sgs.weight_decay.decay_factor`) is
        not scaled: the kernel becomes ``W - lr * weight_decay * W - G * rest``, with ``rest`` the rest of the update. A
        decay that the optimizer adds to the gradient (L2, as in SGD and Adam) is part of the update and is scaled with
        it. Holds one copy of the kernels meanwhile.

        Raises:
            StateError: ``apply="gradient"``, or inside another ``scaled_update()``.
            InputError: weight decay in an Adafactor that finds its learning rate itself.

        Warns:
            NoEffectWarning: an optimizer that stepped the kernels undoes the scaling (:meth:`check_optimizer`).
        """
        if self.apply == "gradient":
            raise StateError("expected apply='update', got apply='gradient'; use scale_gradients()")
        with scaled_updates(self._layers, self._placed_scalings()) as (stepped, scaled):
            yield
        for optimizer in stepped:
            self._check(optimizer, stacklevel=4)
        self._calls.scaled({name: self._layers[name] for name in scaled}, plain=not self._measured)

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Scale at every ``optimizer.step()``, without a call in the loop.

        Only the kernels that the optimizer holds at that step are scaled, so that several optimizers can share a model:
        attach to each. Wrappers of Accelerate, Lightning, Lookahead, SAM and schedule-free are looked through. With
        ``apply="gradient"`` this comes after any clipping in the loop, which then is no bound: to clip, call
        :meth:`scale_gradients` before it instead.

        Returns:
            A handle whose ``remove()`` ends it, as does leaving its ``with`` block; :meth:`remove` ends all.

        Raises:
            StateError: this controller, or another one of the same kernels, is attached already. Or later, with
                ``apply="gradient"``, if ``step`` receives a closure, which computes gradients after the hook. Call
                ``scale_gradients()`` at its end instead.

        Warns:
            NoEffectWarning: the optimizer holds none of the kernels, or cancels the scaling (:meth:`check_optimizer`).
            BackpassWarning: AGC is attached before it.
        """

        def before_step(stepping: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.apply == "update":
                kernels = self._held_by(stepping)
                for around in self._running.values():
                    around.leave_out(kernels)
                self._running[id(stepping)] = Update(kernels)
                return
            refuse_closure(args, kwargs, "scale_gradients()")
            self._scale(self._held_by(stepping), stepping)

        def after_step(stepped: Optimizer) -> None:
            if (update := self._running.pop(id(stepped), None)) is not None:
                update.decay(stepped)
                update.scale(self._placed_scalings())
                self._calls.scaled(self._held_by(stepped), plain=not self._measured)

        after = after_step if self.apply == "update" else None
        attachment = self._attachments.add(optimizer, self._kernels_in, before_step, after)
        self._calls.started()
        self._check(optimizer)
        return attachment

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Warn, once, if the optimizer undoes the scaling.

        Adam and its relatives divide each element of the gradient by its own size
        (:func:`backpass.sgs.optimizers.normalizes_gradients`), so a scaling that stays the same for many steps does not
        change the update. MADGRAD and the schedule-free form of AdamW undo a scaling of the update too
        (:func:`backpass.sgs.optimizers.undoes_updates`). Not needed after :meth:`attach`, or where
        :meth:`scale_gradients` receives the optimizer, which do it.

        Warns:
            NoEffectWarning: such an optimizer.
        """
        self._check(optimizer)

    def _check(self, optimizer: Optimizer, stacklevel: int = 3) -> None:
        if not self._warned_of_optimizer:
            self._warned_of_optimizer = warn_if_undone(optimizer, self.apply, stacklevel)

    def remove(self) -> None:
        """Detach from every optimizer."""
        self._attachments.remove()

    def _placed_scalings(self) -> dict[str, Tensor]:
        """Return the scalings, on the devices where the kernels are now; on the CPU as long as these are on meta."""
        for name, layer in self._layers.items():
            if (device := layer.parameter.device).type != "meta":
                self.scalings[name] = self.scalings[name].to(device)
        return self.scalings

    def _kernels_in(self, optimizer: Optimizer) -> set[int]:
        return {id(layer.parameter) for layer in self._held_by(optimizer).values()}

    def _held_by(self, optimizer: Optimizer) -> dict[str, ConvLayer]:
        held = held_by(optimizer)
        return {name: layer for name, layer in self._layers.items() if id(layer.parameter) in held}
