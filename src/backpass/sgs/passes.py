"""The two passes of a model over its measuring batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from backpass.batches import Forward, describe
from backpass.errors import InputError
from backpass.sgs.distributed import ProcessGroup, failing_together, is_sharded, largest_of_processes, reshard
from backpass.sgs.feature_maps import FeatureMap, FeatureMapVisitor, capture_feature_maps, evaluating
from backpass.sgs.held_maps import HeldMaps, JoinedMaps
from backpass.sgs.layers import ConvLayer

__all__ = ["Passes"]

# What the first pass keeps for the second: of two batches of 128 CIFAR images in VGG-16 all but the maps of the first
# two convolutions, of twenty those of the last four.
_HELD_BYTES = 144 << 20
_ELEMENTS_WORTH_A_VISIT = 1 << 20


class _Stop(Exception):  # noqa: N818  (no error)
    """Leaves the model once the last map that a pass needs was seen."""


class Passes:
    """Shows a visitor the feature maps of all batches, twice, and leaves no trace on the model.

    Both passes run eagerly, in eval mode and without gradients, from the same buffers and random state. The second
    stops in each batch before the maps that were kept from the first, unless the model draws random numbers or changes
    its buffers, so that less of it might change what follows, or is sharded, so that running it is collective.

    Args:
        model: without wrappers.
        batches: read again in the second pass, where anything but kept maps is needed of them.
        layers: whose maps to show.
        forward: runs the model on a batch.
        group: the processes that measure together; a failure on one fails all.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        layers: Iterable[ConvLayer],
        forward: Forward,
        group: ProcessGroup,
    ) -> None:
        self._model, self._batches, self._layers = model, batches, list(layers)
        self._forward, self._group = forward, group
        self._device = self._layers[0].parameter.device
        self._sharded = is_sharded(model)
        # A sharded model never stops early, so nothing is kept for it.
        kept = 0 if self._sharded else len(batches)
        self._held = [HeldMaps(_HELD_BYTES // len(batches)) for _ in range(kept)]

    def first(self, visit: FeatureMapVisitor) -> None:
        """Show every map as it appears, valid during the visit only."""

        def visitor(number: int) -> FeatureMapVisitor:
            def visit_and_keep(feature_map: FeatureMap) -> None:
                visit(feature_map)
                self._held[number].append(feature_map)

            return visit_and_keep if self._held else visit

        with self._together():
            steady = self._run(range(len(self._batches)), visitor)
        if not steady:
            self._held.clear()

    def second(self, visit: FeatureMapVisitor) -> None:
        """Show every map again, in any order, small ones of a layer joined along the batch."""
        joined = JoinedMaps(_ELEMENTS_WORTH_A_VISIT)

        def add(feature_map: FeatureMap) -> None:
            if (enough := joined.add(feature_map)) is not None:
                visit(enough)

        def add_first(number: int) -> FeatureMapVisitor:
            remaining = self._held[number].first

            def add_and_count(feature_map: FeatureMap) -> None:
                nonlocal remaining
                add(feature_map)
                remaining -= 1
                if remaining == 0:
                    raise _Stop

            return add_and_count

        with self._together():
            if self._held:
                for maps in self._held:
                    for feature_map in maps.take():
                        add(feature_map)
                self._run([number for number, maps in enumerate(self._held) if maps.first], add_first)
            else:
                self._run(range(len(self._batches)), lambda number: add)
            for feature_map in joined.rest():
                visit(feature_map)

    @contextmanager
    def _together(self) -> Iterator[None]:
        with failing_together(self._device, self._group):
            try:
                yield
            finally:
                reshard(self._model)

    def _run(self, numbers: Iterable[int], visitor: Callable[[int], FeatureMapVisitor]) -> bool:
        """Run the model on these batches; return whether it left its buffers and the random state untouched."""
        own = runs = len(self._batches)
        if self._sharded:  # then every process runs as often as the one with most batches
            runs = largest_of_processes(own, self._device, self._group)
        with evaluating(self._model) as untouched:
            for number in numbers:
                with capture_feature_maps(self._layers, visitor(number)):
                    self._run_on(number)
            for _ in range(runs - own):
                self._forward(self._batches[-1])
            return untouched()

    def _run_on(self, number: int) -> None:
        batch = self._batches[number]
        try:
            self._forward(batch)
        except _Stop:
            pass
        except (InputError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"the model failed on measuring batch {number} ({describe(batch)}): {error}. Expected batches "
                "as in training; pass forward=... for batches of another form"
            ) from error
