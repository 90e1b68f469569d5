"""Random states that a loader or a model draws from: kept, or seeded for a while."""

import pickle
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from backpass._internal.nested_loaders import nested_loaders

__all__ = ["keeping_global_states", "keeping_random_state", "seeded"]


@contextmanager
def keeping_random_state(loader: Iterable[object]) -> Iterator[None]:
    """Restore the random states of torch, Python and NumPy, and of the loader's own generators and epochs, at the end.

    Samplers, and the loaders of Accelerate and Lightning Fabric, count epochs as they are read, and seed each with its
    number. So reading batches inside, also all, changes neither the order nor the augmentation of what the caller reads
    later. Generators (of torch, Python and NumPy) are found as attributes of the loader, its samplers, its data set,
    data sets inside that one and their ``transform``. Others, and the states inside a loader's persistent worker
    processes, are out of reach.

    >>> generator = torch.Generator().manual_seed(0)
    >>> loader = torch.utils.data.DataLoader(range(100), shuffle=True, generator=generator)
    >>> with keeping_random_state(loader):
    ...     first = next(iter(loader))
    >>> torch.equal(first, next(iter(loader)))
    True
    """
    restore = list(_restoring(loader))
    epochs = list(_epochs(loader))
    with keeping_global_states():
        try:
            yield
        finally:
            for restore_one in restore:
                restore_one()
            for holder, name, number in epochs:
                setattr(holder, name, number)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (on the CPU), Python and NumPy, and restore their states at the end.

    >>> with seeded(3):
    ...     first = random.random(), torch.rand(1)
    >>> with seeded(3):
    ...     first == (random.random(), torch.rand(1))
    True
    """
    with keeping_global_states():
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed(seed % 2**32)
        yield


@contextmanager
def keeping_global_states(devices: Sequence[torch.device] = ()) -> Iterator[Callable[[], bool]]:
    """Restore the states of the global generators of torch, Python and NumPy at the end.

    Of torch on the CPU and on ``devices``, which are CUDA's. The context returns a function that returns whether the
    states are unchanged so far.

    >>> with keeping_global_states() as unchanged:
    ...     before, _ = unchanged(), random.random()
    ...     before, unchanged()
    (True, False)
    """
    python_states, torch_states = _python_states(), _torch_states(devices)

    def unchanged() -> bool:
        # NumPy's state has an array within, which compares element by element.
        same = pickle.dumps(_python_states()) == pickle.dumps(python_states)
        return same and all(map(torch.equal, _torch_states(devices), torch_states))

    with torch.random.fork_rng(devices=devices):
        try:
            yield unchanged
        finally:
            python_state, numpy_state = python_states
            random.setstate(python_state)
            if numpy_state is not None:
                sys.modules["numpy"].random.set_state(numpy_state)


def _python_states() -> tuple[Any, Any]:
    numpy = sys.modules.get("numpy")
    return random.getstate(), None if numpy is None else numpy.random.get_state()


def _torch_states(devices: Sequence[torch.device]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _restoring(loader: object) -> Iterator[Callable[[], object]]:
    """Yield, for each generator of a loader and of what it draws with, a function that gives it its present state."""
    numpy = sys.modules.get("numpy")
    values = [value for holder in _holders(loader) for value in _attributes(holder).values()]
    for generator in {id(value): value for value in values}.values():
        if isinstance(generator, torch.Generator):
            yield partial(generator.set_state, generator.get_state())
        elif isinstance(generator, random.Random) and not isinstance(generator, random.SystemRandom):  # has no state
            yield partial(generator.setstate, generator.getstate())
        elif numpy and isinstance(generator, numpy.random.RandomState):
            yield partial(generator.set_state, generator.get_state())
        elif numpy and isinstance(generator, numpy.random.Generator):
            yield partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)


def _epochs(loader: object) -> Iterator[tuple[object, str, int]]:
    """Yield each counter of epochs of a loader and of what it draws with: its holder, its name and its number."""
    for holder in _holders(loader):
        for name in ("epoch", "iteration", "_num_iter_calls"):  # the last of Lightning Fabric's loaders
            number = _attributes(holder).get(name)
            if isinstance(number, int):
                yield holder, name, number


def _holders(loader: object) -> Iterator[object]:
    """Yield a loader, the loaders inside it, their samplers, data sets, and the transforms of these."""
    for inner in nested_loaders(loader):
        batch_sampler = getattr(inner, "batch_sampler", None)
        whole = getattr(batch_sampler, "batch_sampler", None)  # of all processes, in Accelerate's of one
        yield from (inner, getattr(inner, "sampler", None), batch_sampler, whole)
        yield from (getattr(batch_sampler, "sampler", None), getattr(whole, "sampler", None))
        yield from _datasets(getattr(inner, "dataset", None), set())


def _datasets(dataset: object, seen: set[int]) -> Iterator[object]:
    """Yield a data set, the ones inside it (``Subset``, ``ConcatDataset``), and their transforms."""
    if id(dataset) in seen:
        return
    seen.add(id(dataset))
    attributes = _attributes(dataset)
    yield from (dataset, attributes.get("transform"), attributes.get("transforms"))
    several = attributes.get("datasets")
    for inner in (attributes.get("dataset"), *(several if isinstance(several, list | tuple) else ())):
        if inner is not None:
            yield from _datasets(inner, seen)


def _attributes(holder: object) -> dict[str, Any]:
    attributes: dict[str, Any] = getattr(holder, "__dict__", {})
    return attributes
