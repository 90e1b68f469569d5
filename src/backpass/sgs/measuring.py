"""Measuring the scalings of a model on a few batches, without a trace left on the model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.sgs.dependence import MEASURES
from backpass.sgs.feature_maps import (
    ConvLayer,
    FeatureMapVisitor,
    capture_feature_maps,
    evaluating,
    scalable_convs,
    unwrap,
)
from backpass.sgs.scaling import scaling_from_dependence

__all__ = ["Forward", "Measurement", "measure_scalings"]

Forward = Callable[[Any], Any]


@dataclass(frozen=True)
class Measurement:
    """What :func:`measure_scalings` found.

    Attributes:
        scalings: float32 scaling of the kernel's spatial shape, by qualified parameter name.
        unreached: layers that no batch ran through.
        not_finite: layers with NaN or infinity in their input.
    """

    scalings: dict[str, Tensor]
    unreached: tuple[str, ...] = ()
    not_finite: tuple[str, ...] = ()


def measure_scalings(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Mapping[str, ConvLayer] | None = None,
    *,
    k: float = 5.0,
    measure: str = "mutual_information",
    drop_near_equal: bool = False,
    forward: Forward | None = None,
) -> Measurement:
    """Return the mean-1 scaling of each convolution kernel, measured on the inputs that its layer sees.

    The model runs twice over the batches (ranges, then counts), eagerly, in eval mode and without gradients, both times
    from the same buffers and random state, and comes back as it was: modes, buffers, random state and hooks. Feature
    maps are consumed in float32 as they appear, so memory does not grow with the number of batches.

    Args:
        model: any module; wrappers are looked through.
        batches: input tensors, or tuples or lists that start with one, such as ``(input, target)``. A sequence is
            read twice as it stands and must return the same batch each time; any other iterable is collected in a
            list first.
        layers: what to measure; default: :func:`backpass.sgs.scalable_convs` of the model.
        k: strength of the transform, :func:`backpass.sgs.k_transform`.
        measure: ``"mutual_information"`` or ``"autocorrelation"``.
        drop_near_equal: leave out pairs that hold a zero or share a bin.
        forward: runs the model on a batch of any other form; default: ``model(input)`` on the model's device.

    Raises:
        InputError: a tensor in place of the batches, no batch, an empty or non-tensor batch, or a batch that the model
            cannot run on.
    """
    model = unwrap(model)
    layers = scalable_convs(model) if layers is None else layers
    if isinstance(batches, Tensor):
        raise InputError(f"expected an iterable of batches, got one {_describe(batches)}; pass [batch]")
    if not isinstance(batches, Sequence):
        with evaluating(model):  # a loader may draw random numbers
            batches = list(batches)
    if len(batches) == 0:
        raise InputError("expected at least one measuring batch, got none")
    device = next(iter(layers.values())).parameter.device
    run = forward if forward is not None else lambda batch: model(_input(batch).to(device, non_blocking=True))
    watched = list(layers.values())
    dependences = {
        name: MEASURES[measure](
            layer.kernel_size, layer.channels, drop_near_equal=drop_near_equal, device=layer.parameter.device
        )
        for name, layer in layers.items()
    }

    def observe(layer: ConvLayer, feature_map: Tensor, dilation: tuple[int, ...]) -> None:
        dependences[layer.name].observe(feature_map, dilation)

    def count(layer: ConvLayer, feature_map: Tensor, dilation: tuple[int, ...]) -> None:
        if layer.name in measurable:
            dependences[layer.name].count(feature_map, dilation)

    with evaluating(model):
        _run(batches, run, watched, observe)
    unreached = tuple(name for name, d in dependences.items() if not d.seen)
    not_finite = tuple(name for name, d in dependences.items() if d.seen and not d.finite)
    measurable = dependences.keys() - {*unreached, *not_finite}
    for name in measurable:
        dependences[name].start_counting()
    with evaluating(model):
        _run(batches, run, watched, count)
    scalings = {name: scaling_from_dependence(d.result(), k) for name, d in dependences.items() if name in measurable}
    return Measurement(scalings, unreached, not_finite)


def _run(batches: Sequence[Any], forward: Forward, layers: Sequence[ConvLayer], visit: FeatureMapVisitor) -> None:
    with capture_feature_maps(layers, visit):
        for number, batch in enumerate(batches):
            try:
                forward(batch)
            except (InputError, torch.OutOfMemoryError):
                raise
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise InputError(
                    f"the model failed on measuring batch {number} ({_describe(batch)}): {error}. Expected batches "
                    "as in training; pass forward=... for batches of another form"
                ) from error


def _input(batch: Any) -> Tensor:
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(x, Tensor):
        raise InputError(
            f"expected a measuring batch to be a tensor or a tuple that starts with one, got {_describe(batch)}; pass "
            "forward=... to run the model on batches of another form"
        )
    if x.numel() == 0:
        raise InputError(f"expected a non-empty measuring batch, got shape {tuple(x.shape)}")
    return x


def _describe(batch: object) -> str:
    if isinstance(batch, Tensor):
        return f"tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of {', '.join(_describe(item) for item in batch) or 'nothing'}"
    return type(batch).__name__
