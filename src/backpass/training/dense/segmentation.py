"""Semantic segmentation: a class for each pixel (SGS Table 7)."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backpass._internal.batches import describe
from backpass._internal.settings import COUNT, POSITIVE, Range, check_settings
from backpass.errors import InputError
from backpass.training.augment import normalize
from backpass.training.dense.segmentation_augmentation import augment_scene, draw_scene
from backpass.training.dense.segmentation_files import IGNORED
from backpass.training.dense.segmentation_loss import segmentation_loss
from backpass.training.dense.segmentation_metrics import SegmentationEvaluation
from backpass.training.dense.windows import window_logits
from backpass.training.image_folder import IMAGENET_MEAN, IMAGENET_STD
from backpass.training.items import Data, ItemData
from backpass.training.recipe import Recipe
from backpass.training.task import Criterion, LossKind, Task

__all__ = ["SemanticSegmentation"]

_CHANCE = Range(at_least=0, at_most=1)


@dataclass(frozen=True)
class SemanticSegmentation(Task):
    """A class for each pixel; cross-entropy in every head; mIoU, mAcc and allAcc. Defaults: hszhao/semseg, Cityscapes.

    An item is a pair of an image, uint8 ``(3, H, W)``, and its labels ``(H, W)``, uint8 as masks are decoded or of any
    other integer dtype: class indices, and 255 for pixels that do not count. For training it is augmented
    (:func:`augment_scene`) and cropped; for evaluation it is normalised, and the model runs over windows of
    the crop's size and mirrored copies (:func:`window_logits`). Prepared labels are int64. The model returns logits of
    the size of its input, in training also a tuple of them and those of auxiliary heads.

    The metrics are ``mean_iou``, ``mean_accuracy`` and ``pixel_accuracy``, from one confusion matrix.

    Attributes:
        num_classes: number of classes, that of the data set.
        label_smoothing: label smoothing of the training loss, that of the recipe.
        auxiliary_weight: factor on the loss of every head but the first.
        crop_height: height of the training crop and of the windows of evaluation, in pixels.
        crop_width: width of them.
        min_scale: smallest factor on the size of a training image.
        max_scale: largest factor.
        rotation: largest rotation of a training image in degrees.
        rotation_probability: probability of a rotation.
        blur_probability: probability of a blur.
        flip_probability: probability that a training image is mirrored.
        windows: evaluate in windows; otherwise the whole image at once.
        window_step: step from window to window over its side.
        flip: average the evaluation with that of the mirrored image.
        evaluation_images: images of one process in a batch of evaluation; above 1, they need one size.

    Raises:
        InputError: a setting is out of range.
    """

    num_classes: Annotated[int, COUNT]
    label_smoothing: Annotated[float, Range(at_least=0, at_most=1)] = 0.0
    auxiliary_weight: Annotated[float, Range(at_least=0)] = 0.4
    crop_height: Annotated[int, COUNT] = 713
    crop_width: Annotated[int, COUNT] = 713
    min_scale: Annotated[float, POSITIVE] = 0.5
    max_scale: Annotated[float, POSITIVE] = 2.0
    rotation: Annotated[float, Range(at_least=0, at_most=180)] = 10.0
    rotation_probability: Annotated[float, _CHANCE] = 0.5
    blur_probability: Annotated[float, _CHANCE] = 0.5
    flip_probability: Annotated[float, _CHANCE] = 0.5
    windows: bool = True
    window_step: Annotated[float, Range(above=0, at_most=1)] = 2 / 3
    flip: bool = True
    evaluation_images: Annotated[int, COUNT] = 1

    metric = "mean_iou"
    training_metric: ClassVar[str] = "pixel_accuracy"
    loss_kind: ClassVar[LossKind] = "cross_entropy"

    def __post_init__(self) -> None:
        """Check the range of every setting."""
        check_settings(self, "task_args")
        if self.min_scale > self.max_scale:
            raise InputError(
                f"expected task_args.min_scale <= task_args.max_scale, got {self.min_scale} and {self.max_scale}; "
                "change one of them"
            )

    @classmethod
    def build(cls, recipe: Recipe, data: Data) -> Self:
        """Return the task of a recipe, with the number of classes of the data set.

        Raises:
            InputError: the data set has one class for each image, or an argument does not fit.
        """
        if not isinstance(data, ItemData):
            raise InputError(
                f"expected a data set with a class for each pixel, such as cityscapes:PATH, got {data.label}, which "
                "has one for each image; choose another data set or task"
            )
        return cls._with_arguments(recipe, {"num_classes": data.num_classes})

    def prepare(self, item: Any, training: bool) -> tuple[Tensor, Tensor]:
        """Return a normalised image, float32, augmented and cropped for training, and its labels, int64.

        Raises:
            InputError: the item is no pair of an RGB image, uint8 ``(3, H, W)``, and integer labels ``(H, W)``.
        """
        _check_item(item)
        image, labels = (part.as_subclass(Tensor) for part in item)
        labels = labels.long()
        if training:
            draws = draw_scene(
                (self.min_scale, self.max_scale),
                self.rotation,
                self.rotation_probability,
                self.blur_probability,
                self.flip_probability,
            )
            return augment_scene(image, labels, draws, (self.crop_height, self.crop_width))
        return normalize(image[None], IMAGENET_MEAN, IMAGENET_STD)[0], labels

    def loss(self, output: Any, target: Any, criterion: Criterion | None = None) -> Tensor:
        """Return the mean cross-entropy of the labelled pixels, plus a fraction of that of each auxiliary head."""
        chosen = criterion or F.cross_entropy
        if self.label_smoothing:
            chosen = partial(chosen, label_smoothing=self.label_smoothing)
        return segmentation_loss(output, target, auxiliary_weight=self.auxiliary_weight, criterion=chosen)

    def terms(self, target: Any) -> Tensor:
        """Return the number of labelled pixels, at least 1.

        Gradients are averaged over processes by their number alone, as in the source.
        """
        labelled: Tensor = (target != IGNORED).sum()
        return labelled.clamp(min=1)

    def training_score(self, output: Any, target: Any) -> Tensor:
        """Return the fraction of the labelled pixels that the first head has right, times the number of images."""
        logits = output[0] if isinstance(output, tuple) else output
        labelled = target != IGNORED
        right = ((logits.argmax(1) == target) & labelled).sum()
        score: Tensor = right * len(target) / labelled.sum().clamp(min=1)
        return score

    def evaluation(self, device: torch.device, alpha: float | None = None) -> SegmentationEvaluation:
        """Return the confusion matrix of a new pass, which has mIoU, mAcc and allAcc."""
        return SegmentationEvaluation(self.num_classes, device)

    def predict(self, forward: Callable[[Any], Any], inputs: Any) -> Tensor:
        """Return logarithms of class probabilities, averaged over windows and mirrored copies."""
        window = (self.crop_height, self.crop_width) if self.windows else None
        return window_logits(forward, inputs, window, stride_fraction=self.window_step, flip=self.flip)

    def measuring_forward(self, model: nn.Module) -> Callable[[Any], Any]:
        """Return ``model.all_heads`` where there is one: in eval mode the model alone runs no auxiliary head."""
        all_heads: Callable[[Any], Any] = getattr(model, "all_heads", model)
        return all_heads

    def deploy(self, model: nn.Module) -> nn.Module:
        """Return the model without its auxiliary head; the model itself is left unchanged."""
        if getattr(model, "auxiliary", None) is None:
            return model
        deployed = copy.copy(model)
        deployed._modules = {**model._modules, "auxiliary": None}
        return deployed

    def example(self, data: Data) -> Tensor:
        """Return one crop of zeros."""
        return torch.zeros(1, data.channels, self.crop_height, self.crop_width)

    def check_output(self, name: str, output: Any, data: Data) -> None:
        """Raise InputError unless the output is a logit for each class and pixel of the crop."""
        expected = (1, self.num_classes, self.crop_height, self.crop_width)
        if not isinstance(output, Tensor) or output.shape != expected:
            raise InputError(
                f"expected a model that returns logits of shape {expected} for one crop, such as pspnet18, got "
                f"{name!r}, which returned {describe(output)}; choose another model"
            )

    def evaluation_batch_size(self, batch_size: int, processes: int, data: Data) -> int:
        """Return ``evaluation_images`` for each process."""
        return self.evaluation_images * processes


def _check_item(item: Any) -> None:
    pair = isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(part, Tensor) for part in item)
    if pair:
        image, labels = item
        integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        rgb = image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3
        if rgb and integers and labels.shape == image.shape[1:]:
            return
    parts = item if isinstance(item, tuple | list) else [item]
    found = ", ".join(f"{p.dtype} {tuple(p.shape)}" if isinstance(p, Tensor) else type(p).__name__ for p in parts)
    raise InputError(
        f"expected a uint8 image (3, H, W) and integer labels (H, W) of the same size, got {found}; convert the items "
        "of the data set, or name another task"
    )
