"""The methods as the loop sees them: one small object each, and a registry that composes them by name.

A method decides *when*; the arithmetic lives in its own package, which knows nothing of this one.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from backpass.agc import AdaptiveGradientClipping
from backpass.errors import InputError
from backpass.pgt import power_grad_cross_entropy
from backpass.reparam import DyRep, fuse, reparameterize, to_plain
from backpass.sgs import SpatialGradientScaling
from backpass.training.recipe import Recipe
from backpass.training.task import Classification, Criterion, Task

__all__ = ["METHODS", "Context", "Method", "build_methods", "check_method", "convert", "deploy", "list_methods"]

MeasuringBatches = Callable[[int], Sequence[Tensor]]


@dataclass(frozen=True)
class Context:
    """What a method is given to work on.

    Attributes:
        recipe: holds the settings of every method.
        model: the model, converted by every method, before any wrapper.
        task: what it is trained for.
        optimizer: holds the model's parameters.
        seed: of the run.
        loss_scaled: whether a ``GradScaler`` is in the loop, which expects overflows and skips their steps itself.
    """

    recipe: Recipe
    model: nn.Module
    task: Task
    optimizer: Optimizer
    seed: int = 0
    loss_scaled: bool = False


class Method:
    """A method in the loop. Every hook does nothing unless a method says otherwise.

    The loop calls, in this order: :meth:`convert` before there is an optimizer; :meth:`criterion` once;
    :meth:`start_epoch` before each epoch's first batch; in each step, after backward and unscaling,
    :meth:`scale_gradients`, then (after norm clipping) :meth:`clip_gradients`, then the optimizer inside
    :meth:`around_step`; and :meth:`end_epoch` after each epoch's last batch.
    """

    alters_structure: ClassVar[bool] = False
    """Whether the method adds or removes layers; at most one such method works on a model."""

    @classmethod
    def convert(cls, model: nn.Module, recipe: Recipe) -> nn.Module:
        """Return the model in the form that is trained."""
        return model

    @classmethod
    def deploy(cls, model: nn.Module) -> nn.Module:
        """Return the plain network that a trained model in eval mode amounts to."""
        return model

    def __init__(self, context: Context) -> None:
        self.context = context

    def criterion(self, plain: Criterion) -> Criterion:
        """Return the training loss; ``plain`` is the task's own."""
        return plain

    def start_epoch(self, epoch: int, measuring_batches: MeasuringBatches) -> bool:
        """Prepare for epoch ``epoch``; return whether something was measured.

        ``measuring_batches(n)`` draws ``n`` training batches from a generator of their own.
        """
        return False

    def scale_gradients(self) -> None:
        """Alter the gradients of this step."""

    def clip_gradients(self) -> None:
        """Bound the gradients of this step."""

    def around_step(self) -> AbstractContextManager[None]:
        """Return a context for the optimizer's step, which begins with the final gradients."""
        return nullcontext()

    def end_epoch(self, epoch: int, measuring_batches: MeasuringBatches) -> bool:
        """Conclude epoch ``epoch``; return whether the model's parameters are others now."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` returned, before model and optimizer take theirs."""


class Sgs(Method):
    """Spatial Gradient Scaling, with measured scalings or with a fixed one."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        s = context.recipe.sgs
        self.batches = s.batches
        self.sgs = SpatialGradientScaling(
            context.model,
            k=s.k,
            measure=s.measure,
            warmup=s.warmup,
            every=s.every,
            drop_near_equal=s.drop_near_equal,
            apply=s.apply,
            scaling=s.fixed_scaling(),
        )

    def start_epoch(self, epoch: int, measuring_batches: MeasuringBatches) -> bool:
        """Measure the scalings when they are due; fixed ones never are."""
        due = self.sgs.due(epoch)
        if due:
            self.sgs.update(measuring_batches(self.batches))
        return due

    def scale_gradients(self) -> None:
        """Scale each kernel's gradient, unless the update is scaled instead."""
        if self.sgs.apply == "gradient":
            self.sgs.scale_gradients()

    def around_step(self) -> AbstractContextManager[None]:
        """Scale the update, if that was asked for."""
        return self.sgs.scaled_update() if self.sgs.apply == "update" else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return the scalings."""
        return self.sgs.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the scalings."""
        self.sgs.load_state_dict(state)


class Pgt(Method):
    """The PowerGrad Transform."""

    def criterion(self, plain: Criterion) -> Criterion:
        """Return cross-entropy with the powered gradient."""
        task, alpha = self.context.task, self.context.recipe.pgt.alpha
        if not isinstance(task, Classification):
            raise InputError(f"pgt alters the gradient of cross-entropy; {type(task).__name__} has another loss")
        smoothing = task.label_smoothing
        return lambda output, target: power_grad_cross_entropy(output, target, label_smoothing=smoothing, alpha=alpha)


class Agc(Method):
    """Adaptive gradient clipping."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        s = context.recipe.agc
        self.agc = AdaptiveGradientClipping(
            context.model, s.clip_factor, s.eps, head=s.head, error_if_nonfinite=not context.loss_scaled
        )

    def clip_gradients(self) -> None:
        """Clip each unit's gradient to a share of the unit's norm."""
        self.agc.clip_gradients()


class Branched(Method):
    """A model whose convolutions are branched blocks from the start; the subclass names the block."""

    alters_structure = True
    block: ClassVar[str]

    @classmethod
    def convert(cls, model: nn.Module, recipe: Recipe) -> nn.Module:
        """Return the model with blocks in the place of its convolutions."""
        return reparameterize(model, cls.block, **cls.options(recipe))

    @classmethod
    def deploy(cls, model: nn.Module) -> nn.Module:
        """Return the network before :meth:`convert`, with the blocks in its convolutions and normalisations."""
        return to_plain(model)

    @classmethod
    def options(cls, recipe: Recipe) -> dict[str, Any]:
        """Return the block's options."""
        return {}


class Acb(Branched):
    """Asymmetric convolution blocks."""

    block = "acb"

    @classmethod
    def options(cls, recipe: Recipe) -> dict[str, Any]:
        """Return the initial gamma."""
        return {"gamma": recipe.reparam.acb_gamma}


class RepVgg(Branched):
    """RepVGG blocks."""

    block = "repvgg"


class Dbb(Branched):
    """Diverse branch blocks, as their authors built them."""

    block = "dbb"


class DbbDyRep(Branched):
    """The blocks called DBB in the tables of DyRep and SGS."""

    block = "dbb_dyrep"


class Dynamic(Method):
    """DyRep: blocks that grow and shrink during training."""

    alters_structure = True

    @classmethod
    def deploy(cls, model: nn.Module) -> nn.Module:
        """Return the network with its blocks fused: grown blocks leave a bias that the plain convolution lacks."""
        return fuse(model)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        s = context.recipe.dyrep
        self.batches = s.recalibration_batches
        self.dyrep = DyRep(
            context.model,
            context.optimizer,
            every=s.every,
            until=s.until,
            metric=s.metric,
            recalibration_batches=s.recalibration_batches,
            seed=context.seed,
        )

    def around_step(self) -> AbstractContextManager[None]:
        """Record the scores of the final gradients."""
        self.dyrep.record()
        return nullcontext()

    def end_epoch(self, epoch: int, measuring_batches: MeasuringBatches) -> bool:
        """Grow one convolution and prune all blocks, when that is due."""
        due = self.dyrep.due(epoch)
        if due:
            self.dyrep.adjust(measuring_batches(self.batches))
        return due

    def state_dict(self) -> dict[str, Any]:
        """Return the structure and the scores."""
        return self.dyrep.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Rebuild the structure."""
        self.dyrep.load_state_dict(state)


METHODS: dict[str, type[Method]] = {
    "sgs": Sgs,
    "pgt": Pgt,
    "agc": Agc,
    "acb": Acb,
    "repvgg": RepVgg,
    "dbb": Dbb,
    "dbb_dyrep": DbbDyRep,
    "dyrep": Dynamic,
}


def list_methods() -> list[str]:
    """Return the methods' names: ``plain``, the single ones, and the pairs in common use.

    :func:`check_method` states which other combinations ``a+b`` are accepted.
    """
    return ["plain", *METHODS, "sgs+pgt", "sgs+agc", "pgt+agc"]


def check_method(name: str) -> list[str]:
    """Return the parts of a method's name; ``plain`` has none.

    Any parts joined by ``+`` are a method, with two exceptions. At most one part alters the structure of the model
    (``acb``, ``repvgg``, ``dbb``, ``dbb_dyrep``, ``dyrep``). And ``sgs`` does not go with ``dyrep``, which replaces
    kernels during training: SGS would no longer scale those that have grown. With ``acb``, ``repvgg``, ``dbb`` and
    ``dbb_dyrep``, SGS scales the kernel of each branch by what the input of that branch shares, which is not the
    same as scaling the kernel that the branches amount to.

    Raises:
        InputError: an unknown or repeated part, or parts that do not go together.

    >>> check_method("sgs+pgt"), check_method("plain")
    (['sgs', 'pgt'], [])
    """
    if name == "plain":
        return []
    parts = name.split("+")
    unknown = [part for part in parts if part not in METHODS]
    if unknown or len(set(parts)) != len(parts):
        raise InputError(
            f"expected a method such as {', '.join(list_methods())}, got {name!r}"
            + (f": unknown {', '.join(map(repr, unknown))}" if unknown else ": a part is repeated")
        )
    structural = [part for part in parts if METHODS[part].alters_structure]
    if len(structural) > 1:
        every = ", ".join(method for method, kind in METHODS.items() if kind.alters_structure)
        raise InputError(
            f"expected at most one method that alters the structure of the model ({every}), got {name!r} with "
            f"{' and '.join(structural)}; train them in separate runs"
        )
    if {"sgs", "dyrep"} <= set(parts):
        raise InputError(
            f"expected sgs with kernels that stay in the model, got {name!r}: dyrep replaces kernels by branches as it "
            "grows, which sgs would leave unscaled; use sgs with fixed branches (sgs+dbb_dyrep), or either alone"
        )
    return parts


def convert(name: str, recipe: Recipe, model: nn.Module) -> nn.Module:
    """Return the model in the form in which the method trains it."""
    for part in check_method(name):
        model = METHODS[part].convert(model, recipe)
    return model


def deploy(name: str, model: nn.Module) -> nn.Module:
    """Return the plain network that a trained model in eval mode amounts to."""
    for part in check_method(name):
        model = METHODS[part].deploy(model)
    return model


def build_methods(name: str, context: Context) -> dict[str, Method]:
    """Return the method objects that ``name`` such as ``"sgs+pgt"`` stands for, by their names."""
    return {part: METHODS[part](context) for part in check_method(name)}
