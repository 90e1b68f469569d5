"""The methods by name, one small object each.

A method decides *when*; the arithmetic lives in its own package, which knows nothing of this one.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

from torch import nn

from backpass._internal.batches import Forward
from backpass.agc import AdaptiveGradientClipping
from backpass.errors import InputError
from backpass.pgt import power_grad_binary_cross_entropy_with_logits, power_grad_cross_entropy
from backpass.reparam import DyRep, fuse, reparameterize, to_plain
from backpass.sgs import SpatialGradientScaling
from backpass.training.method import Context, MeasuringBatches, Method
from backpass.training.optimization import group_of
from backpass.training.recipe import Recipe
from backpass.training.task import Criterion

__all__ = ["METHODS", "build_methods", "check_method", "convert", "deploy", "list_methods"]


_POWER_GRAD: dict[str | None, Criterion] = {
    "cross_entropy": power_grad_cross_entropy,
    "binary_cross_entropy": power_grad_binary_cross_entropy_with_logits,
}


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
            dilation=s.dilation,
            apply=s.apply,
            scaling=s.fixed_scaling(),
        )
        self.sgs.check_optimizer(context.optimizer)
        self.sgs.check_epochs(context.recipe.epochs)

    def start_epoch(self, epoch: int, measuring_batches: MeasuringBatches) -> bool:
        """Measure the scalings if they are due; fixed ones never are."""
        due = self.sgs.due(epoch)
        if due:
            self.sgs.update(measuring_batches(self.batches), forward=self.context.forward)
        return due

    def scale_gradients(self) -> None:
        """Scale each kernel's gradient, unless the update is scaled instead."""
        if self.sgs.apply == "gradient":
            self.sgs.scale_gradients()

    def around_step(self) -> AbstractContextManager[None]:
        """Scale the update, if the recipe scales it instead of the gradient."""
        return self.sgs.scaled_update() if self.sgs.apply == "update" else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return the scalings."""
        return self.sgs.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the scalings."""
        self.sgs.load_state_dict(state)


class Pgt(Method):
    """The PowerGrad Transform."""

    @property
    def alpha(self) -> float:
        """The exponent: the gradient is that of cross-entropy at ``alpha * z``."""
        return self.context.recipe.pgt.alpha

    def criterion(self, plain: Criterion) -> Criterion:
        """Return the task's loss with the gradient of the PowerGrad Transform, in each of its terms.

        Raises:
            InputError: the task's loss is no cross-entropy, or another method has replaced it.
        """
        task, alpha = self.context.task, self.alpha
        if task.loss_kind not in _POWER_GRAD:
            raise InputError(
                f"expected a task with {' or '.join(map(str, _POWER_GRAD))}, whose gradient pgt alters, got "
                f"{type(task).__name__}, whose loss is neither; choose another method"
            )
        if plain != task.loss:
            raise InputError("expected the task's own loss, got one of another method; name pgt before that")
        return partial(task.loss, criterion=partial(_POWER_GRAD[task.loss_kind], alpha=alpha))


class Agc(Method):
    """Adaptive gradient clipping."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        s = context.recipe.agc
        # Gradients that are not finite belong to a run that diverges, as the numbers of its epoch show, or to a step
        # that a GradScaler skips.
        self.agc = AdaptiveGradientClipping(context.model, s.clip_factor, s.eps, head=s.head, error_if_nonfinite=False)

    def clip_gradients(self) -> None:
        """Clip each unit's gradient to a fraction of the unit's norm."""
        self.agc.clip_gradients()


class Branched(Method):
    """Training with branched blocks from the start; the subclass names the block."""

    alters_structure = True
    block: ClassVar[str]

    @classmethod
    def convert(cls, model: nn.Module, recipe: Recipe) -> nn.Module:
        """Return the model with blocks instead of its convolutions."""
        return reparameterize(model, cls.block, **cls.options(recipe))

    @classmethod
    def deploy(
        cls, model: nn.Module, measuring_batches: MeasuringBatches | None = None, forward: Forward | None = None
    ) -> nn.Module:
        """Return the network before :meth:`convert`, with the blocks fused into its convolutions and normalisations.

        The normalisations are measured on 10 batches, so that the network can be trained further.
        """
        return to_plain(model, None if measuring_batches is None else measuring_batches(10), forward=forward)

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
    """The blocks that the tables of DyRep and SGS call DBB."""

    block = "dbb_dyrep"


class Dynamic(Method):
    """DyRep: blocks that grow and shrink during training."""

    alters_structure = True

    @classmethod
    def deploy(
        cls, model: nn.Module, measuring_batches: MeasuringBatches | None = None, forward: Forward | None = None
    ) -> nn.Module:
        """Return the network with its blocks fused; a fused block has a bias, which the plain convolution lacks."""
        return fuse(model)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        s, optimizer = context.recipe.dyrep, context.recipe.optimizer
        self.batches = s.recalibration_batches
        self.dyrep = DyRep(
            context.model,
            context.optimizer,
            every=s.every,
            until=s.until,
            metric=s.metric,
            recalibration_batches=s.recalibration_batches,
            group_of=group_of(context.model, optimizer) if optimizer.lr_factors else None,
            seed=context.seed,
        )

    def around_step(self) -> AbstractContextManager[None]:
        """Record the scores of the final gradients."""
        self.dyrep.record()
        return nullcontext()

    def end_epoch(self, epoch: int, measuring_batches: MeasuringBatches) -> bool:
        """Grow one convolution and prune all blocks, if an adjustment is due."""
        due = self.dyrep.due(epoch)
        if due:
            self.dyrep.adjust(measuring_batches(self.batches), forward=self.context.forward)
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
            + (f" with the unknown {', '.join(map(repr, unknown))}" if unknown else " with a repeated part")
            + "; correct the name"
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


def deploy(
    name: str, model: nn.Module, measuring_batches: MeasuringBatches | None = None, forward: Forward | None = None
) -> nn.Module:
    """Return the plain network that is equivalent to a trained model in eval mode; see :meth:`Method.deploy`."""
    for part in check_method(name):
        model = METHODS[part].deploy(model, measuring_batches, forward)
    return model


def build_methods(name: str, context: Context) -> dict[str, Method]:
    """Return the methods that ``name``, such as ``"sgs+pgt"``, is made of, by their names."""
    return {part: METHODS[part](context) for part in check_method(name)}
