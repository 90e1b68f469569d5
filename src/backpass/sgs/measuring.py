"""Measuring the scalings of a model on a few batches, without a trace left on the model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
    process_group: ProcessGroup = None,
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
        raise InputError(f"expected an iterable of batches, got one {_describe(batches)}; pass [batch]")
    if not isinstance(batches, Sequence):
        with evaluating(model):  # a loader may draw random numbers
            batches = list(batches)
    if len(batches) == 0:
        raise InputError("expected at least one measuring batch, got none")
    device = next(iter(layers.values())).parameter.device
    run = forward if forward is not None else lambda batch: model(_input(batch).to(device, non_blocking=True))
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
            measurable[layer.name].count(feature_map, dilation)

    # Running a sharded model is a collective operation, so every process runs it as often as the one with most batches.
    runs = largest_of_processes(len(batches), device, process_group) if is_sharded(model) else len(batches)

    def run_all(visit: FeatureMapVisitor) -> None:
        failure = None
        try:
            with evaluating(model):
                _run(batches, run, list(layers.values()), visit)
                for _ in range(runs - len(batches)):
                    run(batches[-1])
        except Exception as error:
            failure = error
        reshard(model)
        if any_process(failure is not None, device, process_group):
            raise failure or StateError("measuring failed on another process; its own error says why")

    run_all(observe)
    reduce_ranges(list(dependences.values()), process_group)
    unreached = tuple(name for name, d in dependences.items() if not d.seen)
    not_finite = tuple(name for name, d in dependences.items() if d.seen and not d.finite)
    measurable = {name: d for name, d in dependences.items() if name not in {*unreached, *not_finite}}
    for dependence in measurable.values():
        dependence.start_counting()
    run_all(count)
    reduce_totals(list(measurable.values()), process_group)
    scalings = {name: scaling_from_dependence(d.result(), k) for name, d in measurable.items()}
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
