"""Classification of images, one class each."""

import inspect
import math
from dataclasses import dataclass
from numbers import Integral
from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from backpass._internal.batches import describe
from backpass._internal.settings import Range, check_settings
from backpass.errors import InputError
from backpass.training.calibration import CalibrationError
from backpass.training.items import Data
from backpass.training.recipe import Recipe
from backpass.training.task import Criterion, LossKind, Task, Total

__all__ = ["Classification", "ClassificationEvaluation"]

_EVALUATION_BATCH_SIZE = 512
_EVALUATION_PIXELS = 224 * 224  # of an image, up to which the batches are that large


@dataclass(frozen=True)
class Classification(Task):
    """Single-label classification with cross-entropy; the headline metric is top-1 accuracy as a fraction.

    Attributes:
        label_smoothing: label smoothing of the training loss, that of the recipe; evaluation uses none.
        num_classes: with which class indices are compared; default: they are not.

    Raises:
        InputError: the label smoothing is out of range.
    """

    label_smoothing: Annotated[float, Range(at_least=0, at_most=1)] = 0.0
    num_classes: int | None = None

    metric = "accuracy"
    training_metric: ClassVar[str] = "accuracy"
    loss_kind: ClassVar[LossKind] = "cross_entropy"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self)

    @classmethod
    def build(cls, recipe: Recipe, data: Data) -> Self:
        """Return the task of a recipe on a data set, with the number of its classes.

        Raises:
            InputError: as for any task, or there is one class alone.
        """
        if data.num_classes < 2:
            raise InputError(
                f"expected at least 2 classes in {data.label}, got {data.num_classes}; add the images of another class"
            )
        accepted = "num_classes" in inspect.signature(cls).parameters
        return cls._with_arguments(recipe, {"num_classes": data.num_classes} if accepted else {})

    def prepare(self, item: Any, training: bool) -> Any:
        """Return the item, a pair of an input and a class index, checked where the number of classes is known.

        Raises:
            InputError: the item is no pair, or the target no integer from 0 to the number of classes less one.
        """
        if self.num_classes is None:
            return item
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(
                f"expected items of an input and a class, got {describe(item)}; override prepare() in your task"
            )
        _, target = item
        number = target.item() if isinstance(target, Tensor) and target.ndim == 0 else target
        whole = isinstance(number, Integral) and not isinstance(number, bool)
        if not whole or not 0 <= number < self.num_classes:
            found = describe(target) if isinstance(target, Tensor) and target.ndim else repr(number)
            raise InputError(
                f"expected the class of each item as an integer from 0 to {self.num_classes - 1}, got {found}; "
                "number the classes from 0, or override prepare() in a task of your own"
            )
        return item

    def loss(self, output: Any, target: Any, criterion: Criterion | None = None) -> Tensor:
        """Return the mean cross-entropy in nats, with label smoothing."""
        return (criterion or F.cross_entropy)(output, target, label_smoothing=self.label_smoothing)

    def training_score(self, output: Any, target: Any) -> Tensor:
        """Return the number of images whose largest logit is that of their class."""
        return _correct(output.detach(), target)

    def evaluation(self, device: torch.device, alpha: float | None = None) -> "ClassificationEvaluation":
        """Return the accuracy, the loss and the calibration error of a new pass."""
        return ClassificationEvaluation(device, alpha)

    def check_output(self, name: str, output: Any, data: Data) -> None:
        """Raise InputError unless the output is a logit for each class."""
        if not isinstance(output, Tensor) or output.shape != (1, data.num_classes):
            found = tuple(output.shape) if isinstance(output, Tensor) else describe(output)
            raise InputError(
                f"expected a model that returns {data.num_classes} logits for each image, got {name!r}, which returned "
                f"{found} for one image; choose another model"
            )

    def evaluation_batch_size(self, batch_size: int, processes: int, data: Data) -> int:
        """Return 512, or the batch size of training where that is larger.

        Of images above 224x224, the number that has the pixels of 512 images of this size instead of 512.
        """
        pixels = math.prod(data.input_size[1:])
        return max(batch_size, min(_EVALUATION_BATCH_SIZE, _EVALUATION_BATCH_SIZE * _EVALUATION_PIXELS // pixels))


class ClassificationEvaluation:
    """Accuracy, cross-entropy and expected calibration error of logits ``z``, and the last two at ``alpha * z`` too.

    The metrics are ``loss`` (nats), ``accuracy`` and ``calibration_error`` (fractions) and, with ``alpha``,
    ``loss_at_alpha`` and ``calibration_error_at_alpha``.
    """

    def __init__(self, device: torch.device, alpha: float | None = None) -> None:
        self._factors = {"": 1.0} if alpha is None else {"": 1.0, "_at_alpha": alpha}
        self._calibration = {suffix: CalibrationError(device) for suffix in self._factors}
        # The sum of the losses for each factor, the number of correct images, and that of all.
        self._sums = torch.zeros(len(self._factors) + 2, dtype=torch.float64, device=device)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of logits, shape ``(N, C)``, and class indices, shape ``(N,)``."""
        for number, (suffix, factor) in enumerate(self._factors.items()):
            logits = output if factor == 1.0 else factor * output
            self._sums[number] += F.cross_entropy(logits, target) * len(target)
            self._calibration[suffix].update(logits, target)
        self._sums[-2] += _correct(output, target)
        self._sums[-1] += len(target)

    def compute(self, total: Total) -> dict[str, float]:
        """Return the metrics over all batches of all processes."""
        *losses, correct, count = total(self._sums)
        metrics = {"accuracy": correct / count}
        for (suffix, calibration), loss in zip(self._calibration.items(), losses, strict=True):
            metrics[f"loss{suffix}"] = loss / count
            metrics[f"calibration_error{suffix}"] = calibration.compute(total)
        return {name: value.item() for name, value in metrics.items()}

    def reliability(self, total: Total) -> dict[str, Tensor]:
        """Return images, mean probability and accuracy of each bin, ``(3, 15)``, by the suffix of the metrics.

        Of the most probable class, over all batches of all processes; an empty bin has zeros.
        """
        sums = {suffix: calibration.sums(total) for suffix, calibration in self._calibration.items()}
        return {suffix: torch.stack([n, *(s / n.clamp(min=1) for s in rest)]) for suffix, (n, *rest) in sums.items()}


# torchmetrics has the same count, and doubles the time in which a process starts.
def _correct(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).sum()
