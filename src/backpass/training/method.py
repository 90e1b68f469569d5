"""A method as the loop knows it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from backpass._internal.batches import Forward
from backpass.training.recipe import Recipe
from backpass.training.task import Criterion, Task

__all__ = ["Context", "MeasuringBatches", "Method"]

MeasuringBatches = Callable[[int], Sequence[Any]]
"""Returns a number of training batches, drawn from a generator of their own."""


@dataclass(frozen=True)
class Context:
    """What a method works on.

    Attributes:
        recipe: the settings of every method.
        model: the model, converted by every method, without wrappers.
        task: the task that the model is trained for.
        optimizer: the optimizer of the model's parameters.
        seed: seed of the run.
        forward: runs the model on a measuring batch, in the precision of training; default: the model itself.
    """

    recipe: Recipe
    model: nn.Module
    task: Task
    optimizer: Optimizer
    seed: int = 0
    forward: Forward | None = None


class Method:
    """A method in the loop; every hook does nothing unless a method overrides it.

    The loop calls, in this order: :meth:`convert` before the optimizer is built; :meth:`criterion` once;
    :meth:`start_epoch` before the first batch of each epoch; in each step, after backward and unscaling,
    :meth:`scale_gradients`, then (after norm clipping) :meth:`clip_gradients`, then the optimizer inside
    :meth:`around_step`; and :meth:`end_epoch` after the last batch of each epoch.

    Args:
        context: what the method works on.
    """

    alters_structure: ClassVar[bool] = False
    """Whether the method adds or removes layers; at most one such method works on a model."""

    @classmethod
    def convert(cls, model: nn.Module, recipe: Recipe) -> nn.Module:
        """Return the model in the form that is trained."""
        return model

    @classmethod
    def deploy(
        cls, model: nn.Module, measuring_batches: MeasuringBatches | None = None, forward: Forward | None = None
    ) -> nn.Module:
        """Return the plain network that is equivalent to a trained model in eval mode.

        Args:
            model: the trained model in eval mode.
            measuring_batches: training batches, on which the network is prepared for further training. Default: it is
                for evaluation alone.
            forward: runs the model on a measuring batch; default: the model itself.
        """
        return model

    def __init__(self, context: Context) -> None:
        self.context = context

    @property
    def alpha(self) -> float | None:
        """The factor on the logits at which the gradient of the loss is taken; ``None``: 1, as with cross-entropy."""
        return None

    def criterion(self, plain: Criterion) -> Criterion:
        """Return the training loss; ``plain`` is that of the task."""
        return plain

    def start_epoch(self, epoch: int, measuring_batches: MeasuringBatches) -> bool:
        """Prepare for epoch ``epoch``; return whether anything was measured."""
        return False

    def scale_gradients(self) -> None:
        """Alter the gradients of this step."""

    def clip_gradients(self) -> None:
        """Bound the gradients of this step."""

    def around_step(self) -> AbstractContextManager[None]:
        """Return a context for the optimizer's step, entered with the final gradients."""
        return nullcontext()

    def end_epoch(self, epoch: int, measuring_batches: MeasuringBatches) -> bool:
        """Conclude epoch ``epoch``; return whether parameters of the model were added or removed."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, before model and optimizer load theirs."""
