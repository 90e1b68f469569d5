"""Measuring the scalings of a model on a few batches, which leaves the model unchanged."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from backpass._internal.batches import Forward, describe, forward_on
from backpass._internal.first_batches import first_batches
from backpass._internal.wrappers import unwrap
from backpass.errors import InputError
from backpass.sgs.dependence import Autocorrelation, Dependence, MutualInformation
from backpass.sgs.distributed import (
    ProcessGroup,
    failing_together,
    is_sharded,
    largest_of_processes,
    reduce_ranges,
    reduce_totals,
    resharded,
)
from backpass.sgs.feature_maps import FeatureMap, FeatureMapVisitor, capture_feature_maps, evaluating
from backpass.sgs.kept_maps import KeptMaps
from backpass.sgs.layers import ConvLayer, scalable_convs
from backpass.sgs.near_equal import MutualInformationWithoutNearEqual
from backpass.sgs.scaling import scaling_from_dependence

__all__ = ["MEASURES", "Alteration", "Measurement", "check_measure", "measure_altered", "measure_scalings"]

MEASURES: dict[str, type[Dependence]] = {
    "mutual_information": MutualInformation,
    "autocorrelation": Autocorrelation,
}


Alteration = Callable[[FeatureMap, int], FeatureMap | None]
"""Returns what is measured instead of a feature map of the batch with a number; ``None``: the map is left out.

It is called twice for each map, and has to return the same both times.
"""


@dataclass(frozen=True)
class Measurement:
    """The result of :func:`measure_scalings`.

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
    loader: Iterable[Any],
    layers: Mapping[str, ConvLayer] | None = None,
    *,
    k: float = 5.0,
    measure: str = "mutual_information",
    drop_near_equal: bool = False,
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
        forward: runs the model on a batch of any other form; or the name of the input in batches that are mappings,
            such as ``"pixel_values"``; default: ``model(input)`` on the model's device.
        process_group: the processes that measure together, each on its own batches, of any number; default: all, where
            ``torch.distributed`` is in use. Ranges and counts are all-reduced, and every process returns the same
            scalings, bit for bit: those of the union of the batches.
        batches: the number of batches to read; default: all.

    Raises:
        InputError: an unknown measure, a tensor instead of batches, no batch, an empty or non-tensor batch, or a
            batch that the model cannot run on.
        StateError: another process failed.
    """
    unaltered = {"": _unaltered}
    return measure_altered(
        model,
        loader,
        unaltered,
        layers,
        k=k,
        measure=measure,
        drop_near_equal=drop_near_equal,
        forward=forward,
        process_group=process_group,
        batches=batches,
    )[""]


def measure_altered(
    model: nn.Module,
    loader: Iterable[Any],
    alterations: Mapping[str, Alteration],
    layers: Mapping[str, ConvLayer] | None = None,
    *,
    k: float = 5.0,
    measure: str = "mutual_information",
    drop_near_equal: bool = False,
    forward: Forward | str | None = None,
    process_group: ProcessGroup = None,
    batches: int | None = None,
) -> dict[str, Measurement]:
    """Return what :func:`measure_scalings` would if every layer saw altered maps, for several alterations at once.

    The model itself runs as it is, twice over the batches whatever the number of alterations.

    Args:
        model: see :func:`measure_scalings`, as all arguments but the next.
        loader: see there.
        alterations: functions of a feature map and the number of its batch, by name.
        layers: see there.
        k: see there.
        measure: see there.
        drop_near_equal: see there.
        forward: see there.
        process_group: see there.
        batches: see there.
    """
    check_measure(measure, drop_near_equal)
    kind = MutualInformationWithoutNearEqual if drop_near_equal else MEASURES[measure]
    model = unwrap(model)
    layers = scalable_convs(model) if layers is None else layers
    device = next(iter(layers.values())).parameter.device
    # Evaluating, since a loader may draw random numbers on the model's device, or run the model.
    with failing_together(device, process_group), evaluating(model):
        read = first_batches(loader, batches)
    run = forward if callable(forward) else forward_on(model, device, forward)
    maps = _MapsOfBatches(model, read, list(layers.values()), run, process_group)
    dependences = {
        (name, alteration): kind(layer.kernel_size, layer.channels, device=layer.parameter.device)
        for alteration in alterations
        for name, layer in layers.items()
    }

    def observe(seen: FeatureMap, batch: int) -> None:
        for alteration, alter in alterations.items():
            if (m := alter(seen, batch)) is not None:
                dependences[m.layer.name, alteration].observe(m.values, m.dilation, m.zeros)

    maps.for_each(observe)
    reduce_ranges(list(dependences.values()), process_group)

    unreached = {key for key, d in dependences.items() if not d.seen}
    not_finite = {key for key, d in dependences.items() if d.seen and not d.finite}
    measurable = {key: d for key, d in dependences.items() if key not in unreached | not_finite}
    with failing_together(device, process_group):
        for dependence in measurable.values():
            dependence.start_counting()

    def count(seen: FeatureMap, batch: int) -> None:
        for alteration, alter in alterations.items():
            if (seen.layer.name, alteration) in measurable and (m := alter(seen, batch)) is not None:
                measurable[m.layer.name, alteration].count(m.values, m.dilation, m.zeros)

    maps.for_each(count)
    reduce_totals(list(measurable.values()), process_group)
    return {
        alteration: Measurement(
            scalings={
                name: scaling_from_dependence(
                    measurable[name, alteration].result(), k, undefined_as_zero=drop_near_equal
                )
                for name in layers
                if (name, alteration) in measurable
            },
            unreached=tuple(name for name in layers if (name, alteration) in unreached),
            not_finite=tuple(name for name in layers if (name, alteration) in not_finite),
        )
        for alteration in alterations
    }


def _unaltered(feature_map: FeatureMap, batch: int) -> FeatureMap:
    return feature_map


def check_measure(measure: str, drop_near_equal: bool) -> None:
    """Raise :class:`InputError` unless there is such a measure and, with ``drop_near_equal``, it has bins."""
    if measure not in MEASURES:
        raise InputError(f"expected measure to be one of {', '.join(map(repr, MEASURES))}, got {measure!r}")
    if drop_near_equal and measure != "mutual_information":
        raise InputError(
            f"expected measure='mutual_information' with drop_near_equal, got {measure!r}, which has no bins; "
            "leave drop_near_equal out"
        )


def _visit(visit: Callable[[FeatureMap, int], None], number: int, feature_map: FeatureMap) -> None:
    visit(feature_map, number)


class _MapsOfBatches:
    """The feature maps of all batches, shown to a visitor as often as needed; the model is left unchanged.

    Each time the model runs in eval mode, eagerly and without gradients, from the same buffers and random state. The
    batches whose maps were kept the first time are not run again (``kept_maps``). Nothing is kept of a model that draws
    random numbers or changes its buffers, since leaving out a batch would change the maps of the next ones, nor of a
    sharded one, since running it is collective.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        layers: Sequence[ConvLayer],
        forward: Forward,
        group: ProcessGroup,
    ) -> None:
        self._model, self._batches, self._layers = model, batches, layers
        self._forward, self._group = forward, group
        self._device = layers[0].parameter.device
        self._sharded = is_sharded(model)
        self._kept = KeptMaps()
        if self._sharded:
            self._kept.clear()

    def for_each(self, visit: Callable[[FeatureMap, int], None]) -> None:
        """Call ``visit`` with every feature map and the number of its batch; a failure on one process fails all.

        A map is valid during the call only.
        """
        with failing_together(self._device, self._group), resharded(self._model):
            own = runs = len(self._batches)
            if self._sharded:  # then every process runs as often as the one with most batches
                runs = largest_of_processes(own, self._device, self._group)
            with evaluating(self._model) as untouched:
                for number in range(own):
                    if number in self._kept:
                        for feature_map in self._kept.take(number):
                            visit(feature_map, number)
                    else:
                        self._run(number, self._kept.keeping(number, partial(_visit, visit, number)))
                for _ in range(runs - own):
                    self._forward(self._batches[-1])
                if not untouched():
                    self._kept.clear()

    def _run(self, number: int, visit: FeatureMapVisitor) -> None:
        batch = self._batches[number]
        try:
            with capture_feature_maps(self._layers, visit):
                self._forward(batch)
        except (InputError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"the model failed on measuring batch {number} ({describe(batch)}): {error}. Expected batches "
                "as in training; pass forward=... for batches of another form"
            ) from error
