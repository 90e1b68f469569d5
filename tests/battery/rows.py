"""The methods that sit the exam. A method enters by adding one row to ``ROWS``."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from backpass import (
    AdaptiveGradientClipping,
    SpatialGradientScaling,
    power_grad_binary_cross_entropy_with_logits,
    power_grad_cross_entropy,
)
from battery import definitions

ALPHA = 0.3
CLIP_FACTOR, EPS = 0.2, 1e-3

Criterion = Callable[[Tensor, Tensor], Tensor]


class Method:
    """What a row does to the gradients of one model. Nothing, unless a subclass says otherwise."""

    def measure(self, batches: Sequence[Tensor]) -> None:
        """Prepare from a few batches."""

    def scale(self) -> None:
        """Alter the gradients: after backward, before the step."""

    def around_step(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        """Return a context for the optimizer's step."""
        return nullcontext()

    def attach(self, optimizer: Optimizer) -> None:
        """Do the same at every step of the optimizer, without the two calls above."""

    def remove(self) -> None:
        """Undo :meth:`attach`."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` returned."""


class Sgs(Method):
    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.sgs = SpatialGradientScaling(model, **options)
        self.measure = self.sgs.update
        self.attach = self.sgs.attach
        self.remove = self.sgs.remove
        self.state_dict = self.sgs.state_dict
        self.load_state_dict = self.sgs.load_state_dict

    def scale(self) -> None:
        if self.sgs.apply == "gradient":
            self.sgs.scale_gradients()

    def around_step(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        return self.sgs.scaled_update() if self.sgs.apply == "update" else nullcontext()


class SgsByDefinition(Method):
    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.model = model
        self.sgs = SpatialGradientScaling(self.model, **options)  # measures; tests/sgs examines the values
        self.measure = self.sgs.update

    def scale(self) -> None:
        if self.sgs.apply == "gradient":
            definitions.scale(self.model, self.sgs.scalings)

    def around_step(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        if self.sgs.apply == "gradient":
            return nullcontext()
        return definitions.scaled_update(self.model, self.sgs.scalings, optimizer)


class Agc(Method):
    def __init__(self, model: nn.Module) -> None:
        self.agc = AdaptiveGradientClipping(model, CLIP_FACTOR, EPS)
        self.scale = self.agc.clip_gradients
        self.attach = self.agc.attach
        self.remove = self.agc.remove


class AgcByDefinition(Method):
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def scale(self) -> None:
        definitions.clip_units(self.model, CLIP_FACTOR, EPS)


class Together(Method):
    """Several methods on one model, in order."""

    def __init__(self, methods: Sequence[Method]) -> None:
        self.methods = methods

    def measure(self, batches: Sequence[Tensor]) -> None:
        for method in self.methods:
            method.measure(batches)

    def scale(self) -> None:
        for method in self.methods:
            method.scale()

    @contextmanager
    def around_step(self, optimizer: Optimizer) -> Any:
        with ExitStack() as stack:
            for method in self.methods:
                stack.enter_context(method.around_step(optimizer))
            yield

    def attach(self, optimizer: Optimizer) -> None:
        for method in self.methods:
            method.attach(optimizer)

    def remove(self) -> None:
        for method in self.methods:
            method.remove()

    def state_dict(self) -> dict[str, Any]:
        return {str(number): method.state_dict() for number, method in enumerate(self.methods)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for number, method in enumerate(self.methods):
            method.load_state_dict(state[str(number)])


@dataclass(frozen=True)
class Loss:
    """A criterion, what it is by definition, and the plain one in whose place it stands."""

    ours: Criterion
    definition: Criterion
    plain: Criterion


@dataclass(frozen=True)
class Transform:
    """What a method does to gradients after backward.

    Attributes:
        ours: makes the library's object for a model.
        definition: makes the slow one.
        measures: it keeps a state that it measures on batches.
        linear: it commutes with the loss scale.
        cancels: optimizers that divide the gradient by its own size cancel it, of which it warns.
        refuses: the combinations that it refuses by name, and the words of the refusal.
    """

    ours: Callable[[nn.Module], Method]
    definition: Callable[[nn.Module], Method]
    measures: bool = False
    linear: bool = False
    cancels: bool = False
    refuses: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One method in the table."""

    name: str
    loss: Loss
    transforms: tuple[Transform, ...] = ()

    def ours(self, model: nn.Module) -> Method:
        """Return the row's method for a model."""
        return Together([transform.ours(model) for transform in self.transforms])

    def definition(self, model: nn.Module) -> Method:
        """Return the row's method by its definition."""
        return Together([transform.definition(model) for transform in self.transforms])

    @property
    def alters(self) -> bool:
        """Whether there is any method in the row."""
        return bool(self.without_one_part())

    @property
    def measures(self) -> bool:
        """Whether some part keeps a measured state."""
        return any(transform.measures for transform in self.transforms)

    @property
    def linear(self) -> bool:
        """Whether every part commutes with the loss scale."""
        return all(transform.linear for transform in self.transforms)

    @property
    def cancels(self) -> bool:
        """Whether some part warns of optimizers that divide the gradient by its own size."""
        return any(transform.cancels for transform in self.transforms)

    def refusal(self, combination: str) -> str | None:
        """Return the words with which the row refuses a combination; ``None`` where it takes it."""
        words = (transform.refuses.get(combination) for transform in self.transforms)
        return next((found for found in words if found is not None), None)

    def without_one_part(self) -> list["Row"]:
        """Return the positive controls: the row with each of its parts left out."""
        plain = replace(self.loss, ours=self.loss.plain, definition=self.loss.plain)
        rest = [self.transforms[:n] + self.transforms[n + 1 :] for n in range(len(self.transforms))]
        rows = [replace(self, transforms=transforms) for transforms in rest]
        return rows if self.loss.ours is self.loss.plain else [*rows, replace(self, loss=plain)]


Refusing = Callable[[Row, str], AbstractContextManager[None]]  # the battery's fixture of that name


def binary_plain(output: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross-entropy of each class against the others."""
    return F.binary_cross_entropy_with_logits(output, F.one_hot(target, output.shape[1]).to(output.dtype))


def binary_power(output: Tensor, target: Tensor) -> Tensor:
    """Return the same value with PowerGrad in its backward pass."""
    one_hot = F.one_hot(target, output.shape[1]).to(output.dtype)
    return power_grad_binary_cross_entropy_with_logits(output, one_hot, alpha=ALPHA)


PLAIN = Loss(F.cross_entropy, F.cross_entropy, F.cross_entropy)
POWER = Loss(
    partial(power_grad_cross_entropy, alpha=ALPHA), definitions.power_grad(F.cross_entropy, ALPHA), F.cross_entropy
)
BINARY_POWER = Loss(binary_power, definitions.power_grad(binary_plain, ALPHA), binary_plain)

_CLOSURE = r"step\(closure\) computes gradients after this hook; remove\(\) .* call {}\(\) at the end of the closure"
_LAZY = r"1\.weight belongs to a lazy convolution that has seen no batch; run one batch through the model"
_FLAT = r"parametrizations\.weight\.original has shape \(4, 27\), .* the taps \(3, 3\), .* leave 0 out with include="
_TWICE_ATTACHED = r"attached to this or another one already; remove\(\) the first attachment"


def sgs(**options: Any) -> Transform:
    """Return SGS with other than its default options."""
    refuses = {
        "attached twice": _TWICE_ATTACHED,
        "measured before the lazy layers' first batch": _LAZY,
        "a kernel made from a parameter of another shape": _FLAT,
    }
    if options.get("apply") == "update":
        refuses |= {"applied twice": r"scaled_update\(\) is running already, .* would count twice; step inside one"}
    else:
        refuses |= {
            "applied twice": r"scaled already; call scale_gradients\(\) once per step, after backward\(\)",
            "attached, with a closure": _CLOSURE.format("scale_gradients"),
        }
    cancels = options.get("apply") != "update"
    return Transform(partial(Sgs, **options), partial(SgsByDefinition, **options), True, True, cancels, refuses)


AGC = Transform(
    Agc,
    AgcByDefinition,
    refuses={
        "attached twice": _TWICE_ATTACHED,
        "attached, with a closure": _CLOSURE.format("clip_gradients"),
        "attached, fused, under a GradScaler": r"the GradScaler's loss scale, .*; call scaler\.unscale_\(opt",
        "gradients that overflow": r"NaN or infinity in 0\.weight .* pass error_if_nonfinite=False under a GradScaler",
    },
)

ROWS = [
    Row("plain", PLAIN),
    Row("sgs", PLAIN, (sgs(),)),
    Row("sgs update", PLAIN, (sgs(apply="update"),)),
    Row("sgs autocorr", PLAIN, (sgs(measure="autocorrelation"),)),
    Row("pgt", POWER),
    Row("pgt binary", BINARY_POWER),
    Row("agc", PLAIN, (AGC,)),
    Row("sgs+pgt", POWER, (sgs(),)),
    Row("sgs+agc", PLAIN, (sgs(), AGC)),
    Row("pgt+agc", POWER, (AGC,)),
]
