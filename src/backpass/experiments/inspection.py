"""The scalings of a model without training, and what they are made of: images, zero padding, chance."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backpass._internal.selection import Include
from backpass._internal.wrappers import unwrap
from backpass.errors import InputError
from backpass.sgs import measure_scalings, scalable_convs
from backpass.sgs.feature_maps import FeatureMap, FeatureMapVisitor
from backpass.sgs.layers import ConvLayer
from backpass.sgs.maps_of_batches import MapsOfBatches
from backpass.sgs.measuring import MEASURES, check_measure, scalings_of_maps

__all__ = ["LayerInspection", "inspect_scalings"]


@dataclass(frozen=True)
class LayerInspection:
    """The scaling of one layer and its origin.

    How far a scaling G spreads beyond the centre is its *evenness*, the mean of G over all taps but the centre, divided
    by G of the centre: 0 where the centre alone would learn, 1 where all taps learn alike, as in plain training. It
    does not depend on the normalisation of G. Three more scalings of the same layer tell where it comes from:

    - of *shuffled* maps, whose pixels trade places at random within each channel and batch, so that they share nothing,
      with the zeros of the padding around them. What is left is what zeros make next to zeros and to the pixels at the
      border, and chance;
    - of maps that are padded first and shuffled then, zeros included: *chance* alone, since a dependence that is
      estimated from a number of pixels is never quite 0. Both have the same pixels and the same number of pairs;
    - of the maps without the padding: the *interior*, which has fewer pairs, and so more chance in it where maps are
      small.

    With the evenness of these, ``padding = (shuffled - chance) / evenness`` and ``chance = chance / evenness``, both
    cut to [0, 1], are fractions of the evenness; the rest is what the pixels of the images share. More images lower
    chance.

    Attributes:
        name: of the kernel parameter.
        kernel: its size.
        stride: of the convolution.
        dilation: of the convolution.
        zeros: that the convolution adds before and after each axis. Zeros that a layer before it adds, as timm's
            convolutions with "same" padding do, count as pixels.
        map_size: of the layer's input, in the first batch.
        scaling: the measured scaling of mean 1, as nested lists; ``None``: no batch reached the layer, or its input was
            not finite.
        centre: scaling at the centre.
        edge: mean scaling at the ends of the axes through the centre.
        corner: mean scaling at the corners; ``None`` for kernels with one axis longer than 1.
        evenness: mean scaling of the taps beyond the centre, relative to the centre.
        interior_evenness: the same of the interior.
        padding: fraction of the evenness that is the geometry of the padding.
        chance: fraction of the evenness that is chance.
        shift: largest difference, over taps, between the scalings of the two halves of the batches; ``None`` with a
            single batch.
    """

    name: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    zeros: tuple[tuple[int, int], ...]
    map_size: tuple[int, ...]
    scaling: list[Any] | None = None
    centre: float | None = None
    edge: float | None = None
    corner: float | None = None
    evenness: float | None = None
    interior_evenness: float | None = None
    padding: float | None = None
    chance: float | None = None
    shift: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the inspection as plain values."""
        return asdict(self)


def inspect_scalings(
    model: nn.Module,
    batches: Sequence[Tensor],
    *,
    k: float = 5.0,
    measure: str = "mutual_information",
    include: Include | None = None,
) -> list[LayerInspection]:
    """Return the scalings that SGS would measure on these batches, layer by layer, and where they come from.

    The model is left unchanged (:func:`backpass.sgs.measure_scalings`), and runs twice over the batches, and
    twice more over the halves.

    Args:
        model: any model with a convolution to scale.
        batches: inputs of the model; two or more of them for the difference between halves.
        k: strength of the transform.
        measure: of dependence, ``"mutual_information"`` or ``"autocorrelation"``.
        include: restrict the convolutions, as in :class:`backpass.SpatialGradientScaling`.

    Raises:
        InputError: no batch, no convolution to scale, or batches that the model cannot run on.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3))
    >>> noise = torch.randn(4, 8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> first, second = inspect_scalings(model, list(noise))
    >>> first.zeros, second.zeros, second.padding
    (((1, 1), (1, 1)), ((0, 0), (0, 0)), 0.0)
    """
    if len(batches) == 0:
        raise InputError("expected at least one batch, got none; pass some inputs of the model")
    check_measure(measure, drop_near_equal=False)
    layers = scalable_convs(model, include)
    half = len(batches) // 2
    halves = [
        measure_scalings(model, part, layers, k=k, measure=measure).scalings
        for part in (batches[:half], batches[half:])
        if half > 0
    ]
    maps = MapsOfBatches(unwrap(model), batches, layers)
    seen: dict[str, FeatureMap] = {}

    def for_each_variant(visit: FeatureMapVisitor) -> None:
        seeds = itertools.count()  # the same in both passes, and for all variants of a map

        def show(m: FeatureMap) -> None:
            seen.setdefault(m.layer.name, replace(m, values=m.values.new_empty((0, *m.values.shape[1:]))))
            seed = next(seeds)
            for variant, vary in _VARIANTS.items():
                visit(replace(vary(m, seed), layer=_variant(m.layer, variant)))

        maps.for_each(show)

    layers_and_variants = {
        varied.name: varied for layer in layers.values() for varied in (_variant(layer, v) for v in _VARIANTS)
    }
    scalings = scalings_of_maps(for_each_variant, layers_and_variants, MEASURES[measure], k=k).scalings
    return [
        _inspection(
            layer,
            seen.get(name),
            {variant: scalings.get(_variant(layer, variant).name) for variant in _VARIANTS},
            [scalings_of_half[name] for scalings_of_half in halves if name in scalings_of_half],
        )
        for name, layer in layers.items()
    ]


def _variant(layer: ConvLayer, variant: str) -> ConvLayer:
    """Return the layer under a name of its own for a variant of its feature maps."""
    return replace(layer, name=f"{variant} {layer.name}")


def _without_padding(m: FeatureMap) -> FeatureMap:
    return replace(m, zeros=((0, 0),) * len(m.zeros))


def _padded(m: FeatureMap) -> FeatureMap:
    """Return the map with the zeros of the padding as pixels."""
    return _without_padding(
        replace(m, values=F.pad(m.values, [count for sides in reversed(m.zeros) for count in sides]))
    )


def _shuffled(m: FeatureMap, seed: int) -> FeatureMap:
    """Return the map with its pixels in random places, the same for all channels."""
    channels = m.values.transpose(0, 1)
    flat = channels.flatten(1)
    order = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(flat.device)
    return replace(m, values=flat[:, order].view(channels.shape).transpose(0, 1))


_VARIANTS: dict[str, Callable[[FeatureMap, int], FeatureMap]] = {
    "whole": lambda m, _: m,
    "interior": lambda m, _: _without_padding(m),
    "shuffled": _shuffled,
    "chance": lambda m, seed: _shuffled(_padded(m), seed),
}


def _inspection(
    layer: ConvLayer, seen: FeatureMap | None, scalings: Mapping[str, Tensor | None], halves: Sequence[Tensor]
) -> LayerInspection:
    conv = layer.modules[0]
    found = LayerInspection(
        name=layer.name,
        kernel=layer.kernel_size,
        stride=tuple(conv.stride),
        dilation=tuple(conv.dilation),
        zeros=() if seen is None else tuple(seen.zeros),
        map_size=() if seen is None else tuple(seen.values.shape[2:]),
    )
    scaling = scalings["whole"]
    if scaling is None:
        return found
    evenness = {name: _evenness(other) for name, other in scalings.items() if other is not None}
    own = evenness["whole"]
    chance = evenness.get("chance", 0.0)
    edges, corners = _ends(layer.kernel_size)
    return replace(
        found,
        scaling=scaling.tolist(),
        centre=float(scaling[_centre(layer.kernel_size)]),
        edge=_mean(scaling, edges),
        corner=_mean(scaling, corners),
        evenness=own,
        interior_evenness=evenness.get("interior"),
        padding=_fraction(evenness.get("shuffled", chance) - chance, own),
        chance=_fraction(chance, own),
        shift=float((halves[0] - halves[1]).abs().max()) if len(halves) == 2 else None,
    )


def _centre(kernel: Sequence[int]) -> tuple[int, ...]:
    return tuple((size - 1) // 2 for size in kernel)


def _evenness(scaling: Tensor) -> float:
    centre = float(scaling[_centre(scaling.shape)])
    return (float(scaling.sum()) - centre) / (scaling.numel() - 1) / centre


def _fraction(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


def _ends(kernel: Sequence[int]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the taps at the ends of the axes through the centre, and those at the corners."""
    centre = _centre(kernel)
    long = [axis for axis, size in enumerate(kernel) if size > 1]
    edges = [
        tuple(end if other == axis else centre[other] for other in range(len(kernel)))
        for axis in long
        for end in (0, kernel[axis] - 1)
        if end != centre[axis]
    ]
    ends = itertools.product(*((0, size - 1) if size > 1 else (0,) for size in kernel))
    corners = [corner for corner in ends if corner != centre] if len(long) > 1 else []
    return edges, corners


def _mean(scaling: Tensor, taps: Sequence[tuple[int, ...]]) -> float | None:
    return sum(float(scaling[tap]) for tap in taps) / len(taps) if taps else None
