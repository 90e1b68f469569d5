"""The feature maps of a model on a few batches, as often as they are needed."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from backpass._internal.batches import Forward, copied, describe, forward_on
from backpass._internal.first_batches import first_batches
from backpass.errors import InputError
from backpass.sgs.distributed import (
    ProcessGroup,
    computing_device,
    failing_together,
    largest_of_processes,
    resharded,
    sharded_modules,
)
from backpass.sgs.feature_maps import FeatureMapVisitor, capture_feature_maps, evaluating
from backpass.sgs.kept_maps import KeptMaps
from backpass.sgs.layers import ConvLayer

__all__ = ["MapsOfBatches"]


class MapsOfBatches:
    """The feature maps of all batches, shown to a visitor as often as needed; the model is left unchanged.

    Each time the model runs in eval mode, eagerly and without gradients, from the same buffers and random state. The
    batches whose maps were kept the first time are not run again (``kept_maps``). Nothing is kept of a model that draws
    random numbers or changes its buffers, since leaving out a batch would change the maps of the next ones, nor of a
    sharded one, since running it is collective.

    Args:
        model: without wrappers.
        loader: of batches; the first of them are read here.
        layers: whose feature maps are shown.
        forward: see :func:`backpass.sgs.measure_scalings`.
        group: the processes that measure together, each on its own batches.
        count: of batches to read; default: all.

    Raises:
        InputError: a tensor instead of batches, no batch, or no layer.
        StateError: another process failed.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        layers: Mapping[str, ConvLayer],
        forward: Forward | str | None = None,
        group: ProcessGroup = None,
        count: int | None = None,
    ) -> None:
        self._model, self._layers, self._group = model, list(layers.values()), group
        if not layers:
            raise InputError("expected at least one layer to measure, got none; leave layers out to measure all")
        self._device = computing_device(self._layers[0].parameter)
        # Evaluating, since a loader may draw random numbers on the model's device, or run the model.
        with failing_together(self._device, group), evaluating(model):
            self._batches = first_batches(loader, count)
        kernels = [layer.parameter for layer in self._layers]  # a head, or a teacher, may have another dtype
        device = computing_device(next(model.parameters()))  # of the input; a model may be spread over several
        self._forward = forward if callable(forward) else forward_on(model, device, forward, kernels=kernels)
        self._sharded = bool(sharded_modules(model))
        self._kept = KeptMaps()
        if self._sharded:
            self._kept.clear()

    def for_each(self, visit: FeatureMapVisitor) -> None:
        """Call ``visit`` with every feature map; a failure on one process fails all. A map is valid during the call."""
        with failing_together(self._device, self._group), resharded(self._model):
            own = runs = len(self._batches)
            if self._sharded:  # then every process runs as often as the one with most batches
                runs = largest_of_processes(own, self._device, self._group)
            with evaluating(self._model) as untouched:
                for number in range(own):
                    if number in self._kept:
                        for feature_map in self._kept.take(number):
                            visit(feature_map)
                    else:
                        self._run(number, self._kept.keeping(number, visit))
                for _ in range(runs - own):
                    self._forward(copied(self._batches[-1]))
                if not untouched():
                    self._kept.clear()

    def _run(self, number: int, visit: FeatureMapVisitor) -> None:
        batch = self._batches[number]
        try:
            with capture_feature_maps(self._layers, visit):
                self._forward(copied(batch))  # which may be written to, while the batch may be needed again
        except (InputError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"the model failed on measuring batch {number} ({describe(batch)}): {error}. Expected batches "
                "as in training; pass forward=... for batches of another form"
            ) from error
