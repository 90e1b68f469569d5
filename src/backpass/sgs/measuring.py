"""Measuring the scalings of a model on a few batches, which leaves the model unchanged."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from backpass._internal.batches import Forward
from backpass._internal.wrappers import unwrap
from backpass.errors import InputError, StateError
from backpass.sgs.dependence import Autocorrelation, Dependence, MutualInformation
from backpass.sgs.distributed import ProcessGroup, computing_device, failing_together, reduce_ranges, reduce_totals
from backpass.sgs.feature_maps import FeatureMap, FeatureMapVisitor
from backpass.sgs.layers import ConvLayer, scalable_convs
from backpass.sgs.maps_of_batches import MapsOfBatches
from backpass.sgs.near_equal import MutualInformationWithoutNearEqual
from backpass.sgs.scaling import check_k, scaling_from_dependence

__all__ = ["MEASURES", "Measurement", "check_dilation", "check_measure", "measure_scalings", "scalings_of_maps"]

MEASURES: dict[str, type[Dependence]] = {
    "mutual_information": MutualInformation,
    "autocorrelation": Autocorrelation,
}


@dataclass(frozen=True)
class Measurement:
    """The result of :func:`measure_scalings`.

    Attributes:
        scalings: float32 scaling of the kernel's spatial shape, by qualified parameter name.
        unreached: layers that no batch ran through, or none with all input channels of the kernel.
        not_finite: layers with NaN or infinity in their input.
    """

    scalings: dict[str, Tensor]
    unreached: tuple[str, ...] = ()
    not_finite: tuple[str, ...] = ()


def measure_scalings(
    model: nn.Module,
    loader: Iterable[Any],
    layers: Mapping[str, ConvLayer] | None = None,
    *,
    k: float = 5.0,
    measure: str = "mutual_information",
    drop_near_equal: bool = False,
    dilation: str = "measured",
    forward: Forward | str | None = None,
    process_group: ProcessGroup = None,
    batches: int | None = None,
) -> Measurement:
    """Return the mean-1 scaling of each convolution kernel, measured on the inputs that its layer sees.

    The model runs twice over the batches (ranges, then counts), eagerly, in eval mode and without gradients, both times
    from the same buffers and random state. Modes, buffers, random state and hooks are restored. Feature maps are
    measured in float32 as they appear, so memory does not grow with the number of batches. The maps of the first
    batches are kept from the first run, up to 192 MiB, and only the other batches run again.

    Args:
        model: any module, also wrapped or compiled.
        loader: yields input tensors, or tuples or lists that start with one, such as ``(input, target)``. A sequence
            is read twice and must return the same batch each time; anything else, such as a ``DataLoader``, is read
            once, and the random states that it draws from are restored.
        layers: what to measure; default: :func:`backpass.sgs.scalable_convs` of the model.
        k: strength of the transform, :func:`backpass.sgs.k_transform`.
        measure: ``"mutual_information"`` or ``"autocorrelation"``.
        drop_near_equal: remove pairs that hold a zero or share a bin
            (:class:`backpass.sgs.near_equal.MutualInformationWithoutNearEqual`); a channel without any other pair then
            counts as 0 in the mean over channels.
        dilation: ``"measured"``, or ``"ignored"``: neighbours are one pixel apart in dilated convolutions too.
        forward: runs the model on a batch of any other form; or the name of the input in batches that are mappings,
            such as ``"pixel_values"``; default: ``model(input)`` on the model's device, with floating point cast to the
            dtype of the first kernel to measure, if none of them has its dtype.
        process_group: the processes that measure together, each on its own batches, of any number; default: all, where
            ``torch.distributed`` is in use. Ranges and counts are all-reduced, and every process returns the same
            scalings, bit for bit: those of the union of the batches.
        batches: the number of batches to read; default: all.

    Raises:
        InputError: ``k`` is not above 0, an unknown measure or dilation, a tensor instead of batches, no batch, an
            empty or non-tensor batch, or a batch that the model cannot run on.
        StateError: another process failed, or the kernels have no values yet (on the meta device).
    """
    check_k(k)
    check_measure(measure, drop_near_equal)
    check_dilation(dilation)
    kind = MutualInformationWithoutNearEqual if drop_near_equal else MEASURES[measure]
    model = unwrap(model)
    layers = scalable_convs(model) if layers is None else layers
    if all(layer.parameter.is_meta for layer in layers.values()) and layers:
        raise StateError(
            f"expected a model with values, got {', '.join(layers)} on the meta device; materialise it "
            "(model.to_empty(device=...), then its weights) before measuring"
        )
    maps = MapsOfBatches(model, loader, layers, forward, process_group, batches)
    for_each_map = maps.for_each if dilation == "measured" else partial(_at_distance_one, maps.for_each)
    return scalings_of_maps(for_each_map, layers, kind, k=k, process_group=process_group)


def scalings_of_maps(
    for_each_map: Callable[[FeatureMapVisitor], None],
    layers: Mapping[str, ConvLayer],
    kind: type[Dependence],
    *,
    k: float,
    process_group: ProcessGroup = None,
) -> Measurement:
    """Return the scalings of layers from their feature maps: ranges first, then counts, then the transform.

    Args:
        for_each_map: calls a visitor with every feature map; twice, with the same maps.
        layers: by their name, which the feature maps carry.
        kind: of dependence between neighbouring pixels.
        k: strength of the transform.
        process_group: the processes that measure together.
    """
    devices = {name: computing_device(layer.parameter) for name, layer in layers.items()}
    dependences = {
        name: kind(layer.kernel_size, layer.channels, device=devices[name]) for name, layer in layers.items()
    }

    def observe(m: FeatureMap) -> None:
        dependence = dependences[m.layer.name]
        dependence.observe(m.values.to(dependence.low.device), m.dilation, m.zeros)

    for_each_map(observe)
    reduce_ranges(list(dependences.values()), process_group)

    unreached = tuple(name for name, d in dependences.items() if not d.seen)
    not_finite = tuple(name for name, d in dependences.items() if d.seen and not d.finite)
    measurable = {name: d for name, d in dependences.items() if name not in unreached + not_finite}
    with failing_together(next(iter(devices.values())), process_group):
        for dependence in measurable.values():
            dependence.start_counting()

    def count(m: FeatureMap) -> None:
        if m.layer.name in measurable:
            dependence = measurable[m.layer.name]
            dependence.count(m.values.to(dependence.low.device), m.dilation, m.zeros)

    for_each_map(count)
    reduce_totals(list(measurable.values()), process_group)
    scalings = {
        name: scaling_from_dependence(d.result(), k, undefined_as_zero=kind.undefined_as_zero)
        for name, d in measurable.items()
    }
    return Measurement(scalings, unreached, not_finite)


def _at_distance_one(for_each_map: Callable[[FeatureMapVisitor], None], visit: FeatureMapVisitor) -> None:
    """Show each map as that of a convolution without dilation, with the zeros that the dilated one adds."""
    for_each_map(lambda m: visit(replace(m, dilation=(1,) * len(m.dilation))))


def check_dilation(dilation: str) -> None:
    """Raise :class:`InputError` unless there is such a way to treat dilation."""
    if dilation not in ("measured", "ignored"):
        raise InputError(f"expected dilation to be one of 'measured', 'ignored', got {dilation!r}; choose one of them")


def check_measure(measure: str, drop_near_equal: bool) -> None:
    """Raise :class:`InputError` unless there is such a measure and, with ``drop_near_equal``, it has bins."""
    if measure not in MEASURES:
        raise InputError(
            f"expected measure to be one of {', '.join(map(repr, MEASURES))}, got {measure!r}; choose one of them"
        )
    if drop_near_equal and measure != "mutual_information":
        raise InputError(
            f"expected measure='mutual_information' with drop_near_equal, got {measure!r}, which has no bins; "
            "leave drop_near_equal out"
        )
