"""What a model is trained for: the form of a batch, the loss, the metrics. The loop knows nothing else of the task."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from backpass._internal.imports import check_call
from backpass.errors import InputError
from backpass.training.batches import batch_size
from backpass.training.items import Data
from backpass.training.recipe import Recipe

__all__ = ["Criterion", "Evaluation", "LossKind", "Task", "Total"]

Criterion = Callable[..., Tensor]
"""Cross-entropy with the arguments of ``F.cross_entropy``, or binary cross-entropy with those of its logits form."""

LossKind = Literal["cross_entropy", "binary_cross_entropy"]

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


class Evaluation(Protocol):
    """The metrics of one pass over a split."""

    def update(self, output: Any, target: Any) -> None:
        """Add a batch, without waiting for the device."""
        ...

    def compute(self, total: Total) -> dict[str, float]:
        """Return the metrics over all batches of all processes, the headline metric among them.

        All have to be finite, since training stops as diverged otherwise; leave out a metric that is undefined.
        """
        ...


class Task(ABC):
    """What a model is trained for; a subclass has :attr:`metric`, :meth:`loss` and :meth:`evaluation` at least.

    A recipe names a task by a name of :func:`~backpass.training.tasks.list_tasks` or by its import path,
    ``package.module:Class``, and ``task_args`` are the arguments of the class. Inputs, targets and outputs are tensors,
    or tuples, lists and dictionaries of them. The loop calls :meth:`prepare` for each item of a data set, in the
    worker processes, :meth:`loss` and :meth:`training_score` for each batch of training, and :meth:`predict` and the
    object of :meth:`evaluation` for each batch of evaluation.
    """

    metric: str
    """Name of the headline metric among those of :meth:`evaluation`: a fraction; larger is better.

    An attribute of the class, or of the task where it depends on the data.
    """

    training_metric: ClassVar[str | None] = None
    """Name of the metric of :meth:`training_score`; ``None``: training has no metric but the loss."""

    loss_kind: ClassVar[LossKind | None] = None
    """Function of which :meth:`loss` takes another form as ``criterion``; ``None``: no such function is in it."""

    @classmethod
    def build(cls, recipe: Recipe, data: Data) -> Self:
        """Return the task of a recipe on a data set; by default the class with the recipe's ``task_args``.

        A class with an argument ``label_smoothing`` is given that of the recipe, unless ``task_args`` has one.

        Raises:
            InputError: the class does not take the arguments, or has no ``label_smoothing`` and the recipe sets one.
        """
        return cls._with_arguments(recipe, {})

    @classmethod
    def _with_arguments(cls, recipe: Recipe, own: dict[str, Any]) -> Self:
        """Return the class with ``own`` arguments and with those of the recipe, which take precedence."""
        arguments = own | dict(recipe.task_args)
        if "label_smoothing" in inspect.signature(cls).parameters:
            arguments = {"label_smoothing": recipe.label_smoothing, **arguments}
        elif recipe.label_smoothing:
            raise InputError(
                f"expected label_smoothing 0 with {cls.__name__}, which has no such argument, got "
                f"{recipe.label_smoothing}; leave it out, or give the class an argument label_smoothing"
            )
        check_call(cls, cls.__name__, arguments)
        return cls(**arguments)

    @abstractmethod
    def loss(self, output: Any, target: Any, criterion: Criterion | None = None) -> Tensor:
        """Return the mean training loss of a batch.

        Args:
            output: of the model in training mode, in float32.
            target: of the batch.
            criterion: instead of the function of :attr:`loss_kind`, with its arguments: that of the PowerGrad
                Transform, which has another gradient. A loss with several terms uses it in each. Default: the function.
        """

    def terms(self, target: Any) -> int | Tensor:
        """Return the number of terms of which :meth:`loss` is the mean, by default that of examples.

        Accumulated gradients weight each micro-batch by it, so that they are those of the whole batch.
        """
        return batch_size(target)

    @abstractmethod
    def evaluation(self, device: torch.device, alpha: float | None = None) -> Evaluation:
        """Return the metrics of a new pass.

        Args:
            device: device of the outputs.
            alpha: factor on the outputs at which the method takes the gradient of the loss, if it has one.
        """

    def training_score(self, output: Any, target: Any) -> Tensor:
        """Return :attr:`training_metric` of a training batch times its number of examples, on the device."""
        raise NotImplementedError

    def prepare(self, item: Any, training: bool) -> Any:
        """Return one example, the pair of an input and a target, of an item of a data set; by default the item.

        Random draws come from the global generators of torch (on the CPU), ``random`` or NumPy, which the loader seeds
        for each example.

        Args:
            item: of an :class:`~backpass.training.items.ItemData`.
            training: whether to augment.
        """
        return item

    def predict(self, forward: Callable[[Any], Any], inputs: Any) -> Any:
        """Return the output that is evaluated, such as an average over windows; by default that of the model.

        Args:
            forward: runs the model in eval mode.
            inputs: of a batch.
        """
        return forward(inputs)

    def measuring_forward(self, model: nn.Module) -> Callable[[Any], Any]:
        """Return what runs every layer of a model that trains, in eval mode too; by default the model."""
        return model

    def deploy(self, model: nn.Module) -> nn.Module:
        """Return the model without what training alone needs; by default the model."""
        return model

    def example(self, data: Data) -> Any:
        """Return an input of one example, of zeros, on which a model is tried and its cost counted."""
        return torch.zeros(1, *data.input_size)

    def check_output(self, name: str, output: Any, data: Data) -> None:  # noqa: B027
        """Raise InputError if ``output`` is not what a model called ``name`` has to return for :meth:`example`."""

    def evaluation_batch_size(self, batch_size: int, processes: int, data: Data) -> int:
        """Return the number of examples in a global batch of evaluation; by default that of training.

        Args:
            batch_size: of a global batch of training.
            processes: number of processes.
            data: what is evaluated.
        """
        return batch_size
