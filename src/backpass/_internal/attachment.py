"""Calling a method at every step of an optimizer, without a call in the training loop."""

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from backpass.errors import NoEffectWarning, StateError

__all__ = ["Attachment", "Attachments", "held_by", "refuse_closure"]

BeforeStep = Callable[[Optimizer, tuple[Any, ...], dict[str, Any]], None]
AfterStep = Callable[[Optimizer], None]


def held_by(optimizer: Optimizer) -> set[int]:
    """Return the ``id`` of every parameter that the optimizer steps now."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def refuse_closure(args: Sequence[Any], kwargs: Mapping[str, Any], call: str) -> None:
    """Raise if ``step`` received a closure, which computes gradients after the hook before a step.

    Args:
        args: positional arguments of ``step``, the optimizer first, as a hook receives them.
        kwargs: its keyword arguments.
        call: what to call at the end of the closure instead.

    Raises:
        StateError: there is a closure.
    """
    if kwargs.get("closure") is not None or any(arg is not None for arg in args[1:]):
        raise StateError(
            "step(closure) computes gradients after this hook; remove() the attachment from the optimizer and call "
            f"{call} at the end of the closure"
        )


class Attachment:
    """A method attached to an optimizer, until :meth:`remove` or the end of a ``with`` block."""

    def __init__(self, optimizer: Optimizer, handles: Sequence[RemovableHandle]) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._handles = list(handles)

    def is_attached_to(self, optimizer: Optimizer) -> bool:
        """Return whether this is attached to ``optimizer``, and not removed."""
        return bool(self._handles) and self._optimizer() is optimizer

    def remove(self) -> None:
        """Detach from the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Attachments:
    """The attachments of one method object: at most one for each optimizer, so that no step is altered twice."""

    def __init__(self) -> None:
        self._all: list[Attachment] = []

    def add(
        self, optimizer: Optimizer, before: BeforeStep, after: AfterStep | None = None, *, has_effect: bool
    ) -> Attachment:
        """Call ``before(optimizer, args, kwargs)`` and ``after(optimizer)`` around each step of the optimizer.

        Raises:
            StateError: attached to this optimizer already.

        Warns:
            NoEffectWarning: ``has_effect`` is false: the optimizer holds nothing that the method alters.
        """
        if any(attachment.is_attached_to(optimizer) for attachment in self._all):
            raise StateError(
                f"attached to this {type(optimizer).__name__} already; remove() the first attachment before another"
            )
        if not has_effect:
            warnings.warn(
                f"{type(optimizer).__name__} holds no parameter that this alters; attach to the optimizer that steps "
                "them",
                NoEffectWarning,
                stacklevel=3,
            )
        handles = [optimizer.register_step_pre_hook(before)]
        if after is not None:
            handles.append(optimizer.register_step_post_hook(lambda stepped, *_: after(stepped)))
        self._all.append(attachment := Attachment(optimizer, handles))
        return attachment

    def remove(self) -> None:
        """Detach from every optimizer."""
        for attachment in self._all:
            attachment.remove()
        self._all.clear()
