"""Key points by heat maps (SGS Table 8)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from torch import Tensor

from backpass._internal.batches import describe
from backpass._internal.settings import COUNT, POSITIVE, Range, check_settings
from backpass.errors import InputError
from backpass.training.dense.crop_geometry import transform_points
from backpass.training.dense.heatmaps import average_with_flipped, decode_heatmaps, draw_heatmaps, heatmap_loss
from backpass.training.dense.person_augmentation import PersonDraws, draw_person
from backpass.training.dense.person_crops import PersonData, PoseTarget, crop_person
from backpass.training.dense.pose_metrics import PckEvaluation, PoseMetric
from backpass.training.items import Data
from backpass.training.recipe import Recipe
from backpass.training.task import Criterion, Task

__all__ = ["KeypointEvaluation", "KeypointHeatmaps"]

_CHANCE = Range(at_least=0, at_most=1)


@dataclass(frozen=True)
class KeypointHeatmaps(Task):
    """A heat map for each joint of a person; squared error; PCKh or PCK. Defaults: xingyizhou/pytorch-pose-hg-3d, MPII.

    An item is a :class:`~backpass.training.dense.persons.PersonItem`. The model returns a heat map for each joint,
    at any size that divides its input. Evaluation averages with the mirrored copy, takes the largest value of each map
    and maps it back to the image. The loss is no cross-entropy, so that ``pgt`` does not apply.

    The metrics of MPII are ``pckh`` (PCKh@0.5, mean over joints) and ``pckh_weighted`` (mean over visible joints), the
    two published variants (:func:`~backpass.training.dense.pose_metrics.pck`). Where persons have no head boxes, as in
    LSP, they are ``pck`` and ``pck_weighted``: within 0.2 of the length of the torso.

    Attributes:
        num_joints: number of joints, that of the data set.
        pairs: right and left joints that change places when an image is mirrored, those of the data set.
        not_scored: joints left out of the means, those of the data set.
        metric: ``pckh`` or ``pck``, that of the data set.
        size: height and width of the input in pixels.
        sigma: standard deviation of the target's Gaussians, in pixels of the heat map.
        rounding: how a joint's pixel follows from its coordinates (:func:`draw_heatmaps`).
        visible_only: leave the maps of joints that are not annotated, or whose Gaussian does not reach the map, out of
            the loss, and halve it, as in microsoft/human-pose-estimation.pytorch.
        flip: average the evaluation with that of the mirrored image.
        shift: move the mirrored copy's maps by one pixel first, as there.
        quarter_pixel: move a map's maximum by a quarter of a pixel towards the larger neighbour, as there.
        max_value: pixel value that corresponds to 1; 256 in the published code, 255 there.
        bgr: order of the channels is blue, green, red, as both published sources have it.
        cap_side: cap the region's side at the longer side of the image.
        scale: standard deviation and largest change of the factor on the region's side, in training.
        rotation: standard deviation of the angle in degrees, in training.
        rotation_probability: probability of a rotation.
        flip_probability: probability that a training crop is mirrored.
        evaluation_images: crops of one process in a batch of evaluation.

    Raises:
        InputError: a setting is out of range.
    """

    num_joints: Annotated[int, COUNT]
    pairs: tuple[tuple[int, int], ...] = ()
    not_scored: tuple[int, ...] = ()
    metric: PoseMetric = "pckh"
    size: Annotated[int, COUNT] = 256
    sigma: Annotated[float, POSITIVE] = 2.0
    rounding: Literal["down", "nearest"] = "down"
    visible_only: bool = False
    flip: bool = True
    shift: bool = False
    quarter_pixel: bool = False
    max_value: Annotated[float, POSITIVE] = 256.0
    bgr: bool = True
    cap_side: bool = True
    scale: Annotated[float, Range(at_least=0, below=1)] = 0.25
    rotation: Annotated[float, Range(at_least=0, at_most=180)] = 30.0
    rotation_probability: Annotated[float, _CHANCE] = 0.6
    flip_probability: Annotated[float, _CHANCE] = 0.5
    evaluation_images: Annotated[int, COUNT] = 32

    def __post_init__(self) -> None:
        """Check the range of every setting."""
        check_settings(self, "task_args")

    @classmethod
    def build(cls, recipe: Recipe, data: Data) -> Self:
        """Return the task of a recipe, with the joints of the data set.

        Raises:
            InputError: the data set has no persons, an argument does not fit, or the recipe has label smoothing.
        """
        if not isinstance(data, PersonData):
            raise InputError(
                f"expected a data set of persons with joints, such as mpii:PATH or lsp:PATH, got {data.label}; choose "
                "another data set or task"
            )
        metric = dict(recipe.task_args).get("metric", data.metric)
        if metric != data.metric:
            raise InputError(
                f"expected the metric of {data.label}, {data.metric}, whose unit its ground truth has, got "
                f"{metric!r}; leave it out"
            )
        own = {"num_joints": data.num_classes, "pairs": data.pairs, "not_scored": data.not_scored, "metric": metric}
        return cls._with_arguments(recipe, own)

    def prepare(self, item: Any, training: bool) -> tuple[Tensor, PoseTarget]:
        """Return the crop of a person, augmented for training, and its joints."""
        draws = PersonDraws()
        if training:
            draws = draw_person(self.scale, self.rotation, self.rotation_probability, self.flip_probability)
        return crop_person(
            item,
            draws,
            size=(self.size, self.size),
            max_value=self.max_value,
            bgr=self.bgr,
            cap_side=self.cap_side,
            pairs=self.pairs,
        )

    def loss(self, output: Any, target: Any, criterion: Criterion | None = None) -> Tensor:
        """Return the mean squared error of the heat maps; half of it, of maps with a joint, with ``visible_only``."""
        joints = target.joints * (output.shape[-1] / self.size)
        maps = draw_heatmaps(joints, target.visible, tuple(output.shape[-2:]), self.sigma, self.rounding)
        if self.visible_only:
            return heatmap_loss(output, maps, maps.amax((2, 3)) > 0) / 2
        return heatmap_loss(output, maps)

    def evaluation(self, device: torch.device, alpha: float | None = None) -> "KeypointEvaluation":
        """Return the PCKh or PCK of a new pass."""
        return KeypointEvaluation(self, device)

    def predict(self, forward: Callable[[Any], Any], inputs: Any) -> Tensor:
        """Return heat maps, averaged with those of the mirrored images."""
        heatmaps: Tensor = forward(inputs)
        if not self.flip:
            return heatmaps
        return average_with_flipped(heatmaps, forward(inputs.flip(-1)), self.pairs, shift=self.shift)

    def example(self, data: Data) -> Tensor:
        """Return one crop of zeros."""
        return torch.zeros(1, data.channels, self.size, self.size)

    def check_output(self, name: str, output: Any, data: Data) -> None:
        """Raise InputError unless the output is a heat map for each joint, of a size that divides the input's."""
        fits = isinstance(output, Tensor) and output.ndim == 4 and output.shape[:2] == (1, self.num_joints)
        if not fits or output.shape[-1] != output.shape[-2] or self.size % output.shape[-1]:
            raise InputError(
                f"expected a model that returns heat maps of shape (1, {self.num_joints}, S, S) for one crop, where S "
                f"divides {self.size}, such as pose_resnet18, got {name!r}, which returned {describe(output)}; choose "
                "another model or size"
            )

    def evaluation_batch_size(self, batch_size: int, processes: int, data: Data) -> int:
        """Return ``evaluation_images`` for each process."""
        return self.evaluation_images * processes


class KeypointEvaluation:
    """PCKh or PCK of heat maps whose maxima are mapped back to the images.

    Args:
        task: has the settings.
        device: device of the outputs.
    """

    def __init__(self, task: KeypointHeatmaps, device: torch.device) -> None:
        self._task = task
        self._pck = PckEvaluation(task.num_joints, device, task.metric, task.not_scored)

    def update(self, output: Any, target: Any) -> None:
        """Add a batch of heat maps ``(N, J, H, W)`` and a :class:`PoseTarget`, without waiting for the device."""
        places = decode_heatmaps(output, quarter_pixel=self._task.quarter_pixel)
        in_crop = places.double() * (self._task.size / output.shape[-1])
        prediction = transform_points(in_crop, target.to_image)
        self._pck.update(prediction, target.truth, target.scored, target.size)

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return both means over all batches of all processes."""
        return self._pck.compute(total)
