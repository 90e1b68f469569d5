"""Measuring the scalings of a model on a few batches, without a trace left on the model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from backpass.batches import Forward, describe, forward_on
from backpass.errors import InputError
from backpass.sgs.dependence import Autocorrelation, Dependence, MutualInformation
from backpass.sgs.distributed import ProcessGroup, failing_together, reduce_ranges, reduce_totals
from backpass.sgs.feature_maps import FeatureMap, evaluating
from backpass.sgs.layers import ConvLayer, scalable_convs, unwrap
from backpass.sgs.near_equal import MutualInformationWithoutNearEqual
from backpass.sgs.passes import Passes
from backpass.sgs.scaling import scaling_from_dependence

__all__ = ["MEASURES", "Measurement", "check_measure", "measure_scalings"]

MEASURES: dict[str, type[Dependence]] = {
    "mutual_information": MutualInformation,
    "autocorrelation": Autocorrelation,
}


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
    process_group: ProcessGroup = None,
) -> Measurement:
    """Return the mean-1 scaling of each convolution kernel, measured on the inputs that its layer sees.

    The model runs twice over the batches (ranges, then counts), eagerly, in eval mode and without gradients, both times
    from the same buffers and random state, and comes back as it was: modes, buffers, random state and hooks. Feature
    maps are consumed in float32 as they appear, so memory does not grow with the number of batches. The last maps of
    each batch, 144 MiB of all batches together, are kept from the first pass, and the second stops before them, unless
    the model draws random numbers, changes its buffers in eval mode, or is sharded.

    Args:
        model: any module; wrappers are looked through.
        batches: input tensors, or tuples or lists that start with one, such as ``(input, target)``. A sequence is
            read twice as it stands and must return the same batch each time; any other iterable is collected in a
            list first.
        layers: what to measure; default: :func:`backpass.sgs.scalable_convs` of the model.
        k: strength of the transform, :func:`backpass.sgs.k_transform`.
        measure: ``"mutual_information"`` or ``"autocorrelation"``.
        drop_near_equal: remove pairs that hold a zero or share a bin
            (:class:`backpass.sgs.near_equal.MutualInformationWithoutNearEqual`); a channel without any other pair then
            counts as 0 in the mean over channels.
        forward: runs the model on a batch of any other form; default: ``model(input)`` on the model's device.
        process_group: the processes that measure together, each on batches of its own and as many as it likes; default:
            all, where ``torch.distributed`` is in use. Ranges and counts are all-reduced, feature maps never sent, and
            every process returns the same scalings, bit for bit: those of the union of the batches.

    Raises:
        InputError: an unknown measure, a tensor instead of batches, no batch, an empty or non-tensor batch, or a
            batch that the model cannot run on.
        StateError: another process failed.
    """
    check_measure(measure, drop_near_equal)
    kind = MutualInformationWithoutNearEqual if drop_near_equal else MEASURES[measure]
    model = unwrap(model)
    layers = scalable_convs(model) if layers is None else layers
    device = next(iter(layers.values())).parameter.device
    with failing_together(device, process_group):
        batches = _collected(batches, model)
    run = forward_on(model, device) if forward is None else forward
    dependences = {
        name: kind(layer.kernel_size, layer.channels, device=layer.parameter.device) for name, layer in layers.items()
    }

    def observe(feature_map: FeatureMap) -> None:
        dependence = dependences[feature_map.layer.name]
        dependence.observe(feature_map.values, feature_map.dilation, feature_map.zeros)

    def count(feature_map: FeatureMap) -> None:
        if feature_map.layer.name in measurable:
            dependence = measurable[feature_map.layer.name]
            dependence.count(feature_map.values, feature_map.dilation, feature_map.zeros)

    passes = Passes(model, batches, layers.values(), run, process_group)
    passes.first(observe)
    reduce_ranges(list(dependences.values()), process_group)
    unreached = tuple(name for name, d in dependences.items() if not d.seen)
    not_finite = tuple(name for name, d in dependences.items() if d.seen and not d.finite)
    measurable = {name: d for name, d in dependences.items() if name not in {*unreached, *not_finite}}
    with failing_together(device, process_group):
        for dependence in measurable.values():
            dependence.start_counting()
    passes.second(count)
    reduce_totals(list(measurable.values()), process_group)
    scalings = {
        name: scaling_from_dependence(d.result(), k, undefined_as_zero=drop_near_equal)
        for name, d in measurable.items()
    }
    return Measurement(scalings, unreached, not_finite)


def check_measure(measure: str, drop_near_equal: bool) -> None:
    """Raise :class:`InputError` unless there is such a measure and, with ``drop_near_equal``, it has bins."""
    if measure not in MEASURES:
        raise InputError(f"expected measure to be one of {', '.join(map(repr, MEASURES))}, got {measure!r}")
    if drop_near_equal and measure != "mutual_information":
        raise InputError(
            f"expected measure='mutual_information' with drop_near_equal, got {measure!r}, which has no bins; "
            "leave drop_near_equal out"
        )


def _collected(batches: Iterable[Any], model: nn.Module) -> Sequence[Any]:
    if isinstance(batches, Tensor):
        raise InputError(f"expected an iterable of batches, got one {describe(batches)}; pass [batch]")
    if not isinstance(batches, Sequence):
        with evaluating(model):  # a loader may draw random numbers
            batches = list(batches)
    if len(batches) == 0:
        raise InputError("expected at least one measuring batch, got none")
    return batches
