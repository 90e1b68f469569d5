"""Measuring the scalings of a model on a few batches, without a trace left on the model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backpass.batches import Forward, describe, forward_on
from backpass.errors import InputError, StateError
from backpass.sgs.dependence import MEASURES
from backpass.sgs.distributed import (
    ProcessGroup,
    any_process,
    is_sharded,
    largest_of_processes,
    reduce_ranges,
    reduce_totals,
    reshard,
)
from backpass.sgs.feature_maps import (
    ConvLayer,
    FeatureMap,
    FeatureMapVisitor,
    capture_feature_maps,
    evaluating,
    scalable_convs,
    unwrap,
)
from backpass.sgs.held_maps import HeldMaps
from backpass.sgs.scaling import scaling_from_dependence

__all__ = ["Measurement", "measure_scalings"]

# What the first pass keeps for the second: of two batches of 128 CIFAR images in VGG-16 all but the maps of the first
# two convolutions, of twenty those of the last four.
_HELD_BYTES = 144 << 20


class _Stop(Exception):  # noqa: N818  (no error)
    """Leaves the model once the last map that a pass needs was seen."""


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
        drop_near_equal: leave out pairs that hold a zero or share a bin.
        forward: runs the model on a batch of any other form; default: ``model(input)`` on the model's device.
        process_group: the processes that measure together, each on batches of its own and as many as it likes; default:
            all, where ``torch.distributed`` is in use. Ranges and counts are all-reduced, feature maps never sent, and
            every process returns the same scalings, bit for bit: those of the union of the batches.

    Raises:
        InputError: a tensor in place of the batches, no batch, an empty or non-tensor batch, or a batch that the model
            cannot run on.
        StateError: another process failed.
    """
    model = unwrap(model)
    layers = scalable_convs(model) if layers is None else layers
    if isinstance(batches, Tensor):
        raise InputError(f"expected an iterable of batches, got one {describe(batches)}; pass [batch]")
    if not isinstance(batches, Sequence):
        with evaluating(model):  # a loader may draw random numbers
            batches = list(batches)
    if len(batches) == 0:
        raise InputError("expected at least one measuring batch, got none")
    device = next(iter(layers.values())).parameter.device
    run = forward_on(model, device) if forward is None else forward
    dependences = {
        name: MEASURES[measure](
            layer.kernel_size, layer.channels, drop_near_equal=drop_near_equal, device=layer.parameter.device
        )
        for name, layer in layers.items()
    }

    held = [HeldMaps(_HELD_BYTES // len(batches)) for _ in range(len(batches))]
    sharded = is_sharded(model)
    # Running a sharded model is a collective operation, so every process runs it as often as the one with most batches.
    runs = largest_of_processes(len(batches), device, process_group) if sharded else len(batches)

    def observe(number: int) -> FeatureMapVisitor:
        def visit(feature_map: FeatureMap) -> None:
            dependence = dependences[feature_map.layer.name]
            dependence.observe(feature_map.values, feature_map.dilation, feature_map.zeros)
            held[number].append(feature_map)

        return visit

    def count(feature_map: FeatureMap) -> None:
        if feature_map.layer.name in measurable:
            dependence = measurable[feature_map.layer.name]
            dependence.count(feature_map.values, feature_map.dilation, feature_map.zeros)

    def count_first(number: int) -> FeatureMapVisitor:
        remaining = held[number].first

        def visit(feature_map: FeatureMap) -> None:
            nonlocal remaining
            count(feature_map)
            remaining -= 1
            if remaining == 0:
                raise _Stop

        return visit

    def run_all(numbers: Iterable[int], visitor: Callable[[int], FeatureMapVisitor]) -> bool:
        """Run the model on these batches; return whether it left its buffers and the random state untouched."""
        failure, steady = None, False
        try:
            with evaluating(model) as untouched:
                for number in numbers:
                    with capture_feature_maps(list(layers.values()), visitor(number)):
                        _run(number, batches[number], run)
                for _ in range(runs - len(batches)):
                    run(batches[-1])
                steady = untouched()
        except Exception as error:
            failure = error
        reshard(model)
        if any_process(failure is not None, device, process_group):
            raise failure or StateError("measuring failed on another process; its own error says why")
        return steady

    steady = run_all(range(len(batches)), observe)
    reduce_ranges(list(dependences.values()), process_group)
    unreached = tuple(name for name, d in dependences.items() if not d.seen)
    not_finite = tuple(name for name, d in dependences.items() if d.seen and not d.finite)
    measurable = {name: d for name, d in dependences.items() if name not in {*unreached, *not_finite}}
    for dependence in measurable.values():
        dependence.start_counting()
    if steady and not sharded:
        for maps in held:
            for feature_map in maps.take():
                count(feature_map)
        run_all([number for number, maps in enumerate(held) if maps.first], count_first)
    else:
        held.clear()
        run_all(range(len(batches)), lambda number: count)
    reduce_totals(list(measurable.values()), process_group)
    scalings = {name: scaling_from_dependence(d.result(), k) for name, d in measurable.items()}
    return Measurement(scalings, unreached, not_finite)


def _run(number: int, batch: Any, forward: Forward) -> None:
    try:
        forward(batch)
    except _Stop:
        pass
    except (InputError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(
            f"the model failed on measuring batch {number} ({describe(batch)}): {error}. Expected batches "
            "as in training; pass forward=... for batches of another form"
        ) from error
