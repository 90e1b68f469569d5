"""Calls that leave kernels plain without an error, as far as they can be told from right ones: warned of once."""

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from backpass._internal.selection import Include
from backpass.errors import BackpassWarning, InputError, NoEffectWarning
from backpass.sgs.distributed import local_part
from backpass.sgs.layers import ConvLayer, scalable_convs

__all__ = ["Calls"]

_PLAIN_STEPS = 100  # steps scaled by ones, in a loop that never calls due(), before a warning
_SHOWN = 10


class Calls:
    """The calls of one controller, as far as they show that it has no effect.

    Kernels that were trained and not scaled are recognised by their norms: different from those at the last ``update``,
    or at the first ``due`` after a start, with no scaled step in between. So nothing is said before the second of them.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._asked = False
        self._due_at: int | None = None
        self._plain_steps = 0
        self._norms: dict[str, float] | None = None
        self._scaled: set[str] = set()

    def started(self) -> None:
        """Note a start: construction, ``attach``, a new model, or a loaded state."""
        self._norms = None
        self._scaled.clear()

    def asked(self, epoch: int, due: bool, layers: Mapping[str, ConvLayer]) -> None:
        """Note that ``due(epoch)`` was called."""
        self._asked = True
        self._due_at = epoch if due else None
        if self._norms is None:
            self._norms = _norms(layers)

    def before_update(self, layers: Mapping[str, ConvLayer], *, scaling_expected: bool) -> None:
        """Check what happened since the last ``update``.

        Warns:
            NoEffectWarning: kernels changed and no step scaled them, although it was expected.
        """
        if self._norms is None or not scaling_expected:
            return
        changed = [name for name, norm in _norms(layers).items() if norm != self._norms.get(name, norm)]
        if plain := [name for name in changed if name not in self._scaled]:
            self._warn(
                "trained without scaling",
                f"{_listed(plain)} changed since the last update() or due(), but no step scaled them: an attached "
                "optimizer whose step() does not run, or no call of scale_gradients(); attach to the optimizer that "
                "steps them",
            )

    def changed_layers(self, model: nn.Module, include: Include | None, layers: Mapping[str, ConvLayer]) -> None:
        """Compare the convolutions of the model with those that were found.

        Warns:
            NoEffectWarning: layers were replaced, parametrised, added or removed.
        """
        try:
            now = scalable_convs(model, include)
        except InputError:  # none is left, or a pattern matches none
            now = {}
        if changed := [name for name in {**layers, **now} if layers.get(name) != now.get(name)]:
            self._warn(
                f"changed: {sorted(changed)}",
                f"{_listed(changed)} was replaced, parametrised, added or removed since the convolutions were found, "
                "so that what trains now is not scaled; call set_model(model) after such a change",
            )

    def updated(self, layers: Mapping[str, ConvLayer]) -> None:
        """Note that the scalings were measured."""
        self._due_at = None
        self._norms = _norms(layers)
        self._scaled.clear()

    def loaded(self) -> None:
        """Note that measured scalings were loaded."""
        self._due_at = None
        self.started()

    def scaled(self, layers: Mapping[str, ConvLayer], *, plain: bool, found: int | None = None) -> None:
        """Note a step whose gradients or updates were scaled.

        Args:
            layers: the kernels that it was meant to scale.
            plain: it scaled by ones, since nothing is measured yet.
            found: the number of gradients that it scaled.

        Warns:
            NoEffectWarning: it found no gradient of a kernel that trains; ``update`` is due and was not called; or 100
                steps were plain without a call of ``due``.
        """
        self._scaled |= layers.keys()
        if found == 0 and any(layer.parameter.requires_grad for layer in layers.values()):
            self._warn(
                "no gradient",
                f"found no gradient on any kernel to scale ({_listed(layers)}); scale after backward() and before "
                "zero_grad(), and call set_model(model) after layers were replaced",
            )
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
        """Warn of layers that keep their scaling in an update, each once for each reason."""
        fresh = [name for name in names if f"{why} {name}" not in self._warned]
        if fresh:
            self._warned.update(f"{why} {name}" for name in fresh)
            warnings.warn(f"{why} {', '.join(fresh)}, which keeps its scaling", BackpassWarning, stacklevel=3)

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, NoEffectWarning, stacklevel=5)


@torch.no_grad()
def _norms(layers: Mapping[str, ConvLayer]) -> dict[str, float]:
    """Return the norm of each kernel that holds values."""
    kernels = {name: layer.parameter for name, layer in layers.items()}
    norms = {
        name: local_part(kernel, name).float().norm()
        for name, kernel in kernels.items()
        if not nn.parameter.is_lazy(kernel) and kernel.device.type != "meta"
    }
    return {name: float(norm) for name, norm in norms.items()}


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join([*shown[:_SHOWN], *(["..."] if len(shown) > _SHOWN else [])])
