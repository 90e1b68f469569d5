"""Calling a method at every step of an optimizer, without a call in the training loop."""

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from backpass._internal.inner_optimizer import inner_optimizer
from backpass.errors import BackpassWarning, NoEffectWarning, StateError

__all__ = ["Attachment", "Attachments", "held_by", "refuse_closure", "warn_holds_nothing"]

BeforeStep = Callable[[Optimizer, tuple[Any, ...], dict[str, Any]], None]
AfterStep = Callable[[Optimizer], None]

_ATTACHED = "_backpass_attachments"  # an attribute of the optimizer, so that every method object sees it


def held_by(optimizer: Optimizer) -> set[int]:
    """Return the ``id`` of every parameter that the optimizer steps now."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def warn_holds_nothing(optimizer: Optimizer, advice: str, stacklevel: int) -> None:
    """Warn, with advice, that an optimizer holds no parameter that a method alters."""
    warnings.warn(
        f"{type(optimizer).__name__} holds no parameter that this alters; {advice}",
        NoEffectWarning,
        stacklevel=stacklevel + 1,
    )


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
    """A method attached to an optimizer, until :meth:`remove` or the end of a ``with`` block.

    Attributes:
        method: name of the method.
        parameters: returns the ``id`` of each parameter that it alters at a step of the optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        method: str,
        parameters: Callable[[Optimizer], set[int]],
        handles: Sequence[RemovableHandle],
    ) -> None:
        self._optimizer = weakref.ref(optimizer)
        self.method = method
        self.parameters = parameters
        self._handles = list(handles)
        attached_to(optimizer).append(self)

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer that this is attached to; ``None`` once it is removed or the optimizer is gone."""
        return self._optimizer() if self._handles else None

    def remove(self) -> None:
        """Detach from the optimizer."""
        if (optimizer := self.optimizer) is not None:
            attached_to(optimizer).remove(self)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def attached_to(optimizer: Optimizer) -> list[Attachment]:
    """Return the list of what is attached to an optimizer, in the order in which it runs."""
    attachments: list[Attachment] = vars(optimizer).setdefault(_ATTACHED, [])
    return attachments


class Attachments:
    """The attachments of one method object.

    A parameter is altered by one object of a method: attaching a second one that alters the same parameters is refused.
    A copy, also through pickle, is attached to nothing.

    Args:
        method: name of the method, for messages.
        ahead_of: names of methods that should run after this one.
    """

    def __init__(self, method: str, *, ahead_of: Sequence[str] = ()) -> None:
        self._method = method
        self._ahead_of = ahead_of
        self._all: list[Attachment] = []

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_all": []}

    def add(
        self,
        optimizer: Optimizer,
        parameters: Callable[[Optimizer], set[int]],
        before: BeforeStep,
        after: AfterStep | None = None,
    ) -> Attachment:
        """Call ``before(optimizer, args, kwargs)`` and ``after(optimizer)`` around each step of the inner optimizer.

        Args:
            optimizer: to attach to.
            parameters: returns the ``id`` of each parameter that the method alters at a step of an optimizer. Kept no
                longer than the attachment, so that an object that is not attached is in no cycle of references.
            before: called before each step.
            after: called after each step.

        Raises:
            StateError: an object of the same method is attached and alters the same parameters.

        Warns:
            NoEffectWarning: the optimizer holds nothing that the method alters.
            BackpassWarning: a method that should run after this one is attached before it.
        """
        optimizer = inner_optimizer(optimizer)
        altered = parameters(optimizer)
        for other in attached_to(optimizer):
            if other in self._all or (other.method == self._method and other.parameters(optimizer) & altered):
                raise StateError(
                    f"expected a {type(optimizer).__name__} without {self._method} on these parameters, got one that "
                    "is attached to this or another one already; remove() the first attachment before another"
                )
            if other.method in self._ahead_of:
                warnings.warn(
                    f"{other.method} is attached to this {type(optimizer).__name__} before {self._method}, which then "
                    f"undoes its bound; attach {self._method} first",
                    BackpassWarning,
                    stacklevel=3,
                )
        if not altered:
            warn_holds_nothing(optimizer, "attach to the optimizer that steps them", stacklevel=3)
        handles = [optimizer.register_step_pre_hook(before)]
        if after is not None:
            handles.append(optimizer.register_step_post_hook(lambda stepped, *_: after(stepped)))
        self._all.append(attachment := Attachment(optimizer, self._method, parameters, handles))
        return attachment

    def optimizers(self) -> list[Optimizer]:
        """Return the optimizers that are attached to now."""
        return [optimizer for attachment in self._all if (optimizer := attachment.optimizer) is not None]

    def remove(self) -> None:
        """Detach from every optimizer."""
        for attachment in self._all:
            attachment.remove()
        self._all.clear()
