"""The data flow of a model as running it on a probe shows it."""

import copy
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from backpass._internal.batches import tensors_in
from backpass._internal.eager import eagerly
from backpass._internal.modes import eval_mode, flagged, set_mode
from backpass.reparam.conversion.data_flow import LAYERS, OUTPUT, DataFlow, kept_values, own_tensors
from backpass.reparam.conversion.probe import Probe, call

__all__ = ["run"]


def run(model: nn.Module, probe: Probe, names: dict[nn.Module, str]) -> DataFlow:
    """Return what happens when ``model`` runs on ``probe`` in eval mode, and in train mode if it runs there."""
    flow = DataFlow()
    with eval_mode(model):
        _record(model, probe, names, flow)
    both = copy.deepcopy(flow)
    try:
        # Normalisations stay in eval mode: they need no more than one image there, and no other process.
        found = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        norms: dict[nn.Module, bool] = dict.fromkeys(found, False)
        with set_mode(model, training=True), flagged(norms):
            _record(model, probe, names, both)
    except Exception as error:  # it may need targets there
        flow.untrained = f"{type(error).__name__}: {error}".splitlines()[0]
        return flow
    return both


def _record(model: nn.Module, probe: Probe, names: dict[nn.Module, str], flow: DataFlow) -> None:
    watch = _Watch(names, flow)
    watched = [module for module in names if isinstance(module, LAYERS)]
    handles = [handle for module in watched for handle in watch.hook(module)]
    try:
        with eagerly(), torch.no_grad(), _recorded_reads(watch), watch:
            output = call(model, probe)
        watch.used(output, OUTPUT)
        kept = [(label, value) for label, value in kept_values(names) if isinstance(value, Tensor)]
        for label, value in kept:
            watch.used(value, label)
        watch.let_go({OUTPUT, *(label for label, _ in kept)})
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchFunctionMode):
    """Attributes every use of a convolution's output to the normalisation or function that makes it."""

    def __init__(self, names: dict[nn.Module, str], flow: DataFlow) -> None:
        super().__init__()
        self.names, self.flow = names, flow
        self.running: list[str] = []
        self.outputs: list[tuple[Tensor, str, set[str]]] = []

    def hook(self, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Watch ``module``, a convolution or a normalisation."""
        name = self.names[module]

        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.running.append(name)
            if not isinstance(module, nn.Conv2d):
                fed = {conv for output, conv, _ in self.outputs if any(output is arg for arg in args)}
                self.flow.feeds.setdefault(name, set()).update(fed or {"another tensor"})

        def leave(_: nn.Module, __: Any, output: Tensor) -> None:
            self.running.pop()
            if isinstance(module, nn.Conv2d):
                users: set[str] = set()
                self.flow.users.setdefault(name, []).append(users)
                self.outputs.append((output, name, users))

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def used(self, nested: Any, user: str) -> None:
        """Record that ``user`` uses the tensors in ``nested``."""
        ids = {id(tensor) for tensor in tensors_in(nested)}
        for output, _, users in self.outputs:
            if id(output) in ids:
                users.add(user)

    def let_go(self, holders: set[str]) -> None:
        """Let go of the convolutions' outputs; record that an object uses those that live on without a known holder."""
        outputs = [(weakref.ref(out), users) for out, _, users in self.outputs if users.isdisjoint(holders)]
        self.outputs.clear()
        if any(output() is not None for output, _ in outputs):
            gc.collect()  # one in a cycle of references is not kept
        for output, users in outputs:
            if output() is not None:
                users.add("an object that the model keeps or returns")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.used([args, kwargs], self.running[-1] if self.running else str(getattr(func, "__name__", func)))
        return func(*args, **kwargs)


@contextmanager
def _recorded_reads(watch: _Watch) -> Iterator[None]:
    """Record whose tensors are read, except by the layer that runs at that time."""
    original = nn.Module.__getattr__

    def recorded(module: nn.Module, attribute: str) -> Any:
        name = watch.names.get(module) if isinstance(module, LAYERS) else None
        if name is not None and name not in watch.running[-1:] and attribute in own_tensors(module):
            watch.flow.reads.setdefault(name, set()).add(attribute)
        return original(module, attribute)

    nn.Module.__getattr__ = recorded  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__getattr__ = original  # type: ignore[method-assign]
