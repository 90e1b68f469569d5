"""Calls that leave kernels plain without an error: each is noticed and warned of once."""

import warnings
from collections.abc import Sequence

from backpass.errors import BackpassWarning, NoEffectWarning

__all__ = ["Calls"]

_PLAIN_STEPS = 100  # steps scaled by ones, in a loop that never calls due(), before a warning


class Calls:
    """The calls of one controller, as far as they show that it has no effect."""

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._asked = False
        self._due_at: int | None = None
        self._plain_steps = 0

    def asked(self, epoch: int, due: bool) -> None:
        """Note that ``due(epoch)`` was called."""
        self._asked = True
        self._due_at = epoch if due else None

    def updated(self) -> None:
        """Note that the scalings were measured or loaded."""
        self._due_at = None

    def scaled(self, *, plain: bool) -> None:
        """Note a step whose gradients or updates were scaled; ``plain``: by ones, since nothing is measured yet.

        Warns:
            NoEffectWarning: ``update`` is due and was not called, or 100 steps were plain without a call of ``due``.
        """
        if self._due_at is not None:
            self._warn(
                "update is due",
                f"due({self._due_at}) was true, but update() was not called before the next step, which keeps the old "
                "scalings; call update(batches) where due(epoch) is true",
            )
        if plain and not self._asked:
            self._plain_steps += 1
            if self._plain_steps == _PLAIN_STEPS:
                self._warn(
                    "nothing is measured",
                    f"{_PLAIN_STEPS} steps were scaled by ones, which is plain training: neither update() nor due() "
                    "was called; call update(batches) where due(epoch) is true",
                )

    def kept(self, why: str, names: Sequence[str]) -> None:
        """Warn of layers that keep their scaling in an update, each once."""
        fresh = [name for name in names if name not in self._warned]
        if fresh:
            self._warned.update(fresh)
            warnings.warn(f"{why} {', '.join(fresh)}, which keeps its scaling", BackpassWarning, stacklevel=3)

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, NoEffectWarning, stacklevel=5)
