"""Which convolution feeds which batch normalisation, and nothing else: found by tracing or by a probe."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from backpass.errors import InputError
from backpass.reparam.block import ReparamBlock

__all__ = ["Pairs", "Probe", "call", "find_pairs", "tensors"]

Probe = Tensor | Sequence[Any] | Mapping[str, Any]
"""An input of a model: one tensor, positional arguments, or keyword arguments."""

_OUTPUT = "the output of the model"

_LAYERS = (nn.Conv2d, nn.modules.batchnorm._BatchNorm)
"""The layers of a pair."""


class Pairs(NamedTuple):
    """What :func:`find_pairs` found; convolutions and normalisations by qualified name.

    Attributes:
        pairs: the batch normalisation that belongs to each convolution.
        unpaired: why each other convolution has none.
        read: the convolutions of which other code in the forward pass reads a tensor, such as ``self.conv.weight``.
    """

    pairs: dict[str, str]
    unpaired: dict[str, str]
    read: set[str]


@dataclass
class _Flow:
    """Who uses each convolution's output, call by call, what each normalisation is fed, and whose tensors are read."""

    users: dict[str, list[set[str]]] = field(default_factory=dict)
    feeds: dict[str, set[str]] = field(default_factory=dict)
    reads: dict[str, set[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def pair_or_reason(self, conv: str) -> tuple[str | None, str]:
        """Return the normalisation that belongs to ``conv``, or ``None`` and the reason."""
        if conv in self.reads:
            return None, f"the forward pass reads its {_listed(self.reads[conv])}, which a block does not have"
        if conv not in self.users:
            if self.failures:
                return None, f"the forward pass could not be traced ({self.failures[0]}); pass probe=<an input>"
            return None, "the forward pass never calls it"
        used = sorted(set().union(*self.users[conv]))
        if len(used) != 1 or not all(self.users[conv]):
            return None, f"its output goes to {', '.join(used) or 'nothing'}, not to one batch normalisation"
        if used[0] not in self.feeds:
            return None, f"its output goes to {used[0]}, not to a batch normalisation"
        if self.feeds[used[0]] != {conv}:
            others = ", ".join(sorted(self.feeds[used[0]] - {conv}))
            return None, f"its batch normalisation {used[0]} also normalises {others}"
        if used[0] in self.reads:
            return None, f"the forward pass reads {_listed(self.reads[used[0]])} of its batch normalisation {used[0]}"
        return used[0], ""


def find_pairs(model: nn.Module, probe: Probe | None = None) -> Pairs:
    """Return which batch normalisation each convolution belongs to, and why the others belong to none.

    A pair is certain: in every call the normalisation's input is the convolution's output, which has no other
    use, and no other code reads a parameter or buffer of the two, such as ``self.conv.weight``. Without a probe the
    forward pass is traced symbolically (``torch.fx``) in train and in eval mode; where that fails, each submodule is
    traced by itself and neighbours in an ``nn.Sequential`` count. With a probe the model runs once on it, in eval mode
    and without gradients, and every use of every convolution's output is seen. Layers inside a
    :class:`~backpass.reparam.block.ReparamBlock` do not count.

    Args:
        model: any module; it comes back as it was.
        probe: an input of the model, for models whose forward pass cannot be traced.

    Returns:
        The pairs, and a reason for each other ``nn.Conv2d`` (subclasses included), in the order of
        ``model.named_modules()``.
    """
    names = _names(model)
    flow = _Flow()
    if probe is not None:
        _run(model, probe, names, flow)
    else:
        for training in (True, False):
            with _mode(model, training):
                _trace(model, names, flow)
    pairs, reasons = {}, {}
    for module, name in names.items():
        if isinstance(module, nn.Conv2d):
            norm, reason = flow.pair_or_reason(name)
            if norm is None:
                reasons[name] = reason
            else:
                pairs[name] = norm
    read = {name for module, name in names.items() if isinstance(module, nn.Conv2d) and name in flow.reads}
    return Pairs(pairs, reasons, read)


def call(model: nn.Module, probe: Probe) -> Any:
    """Return ``model`` applied to ``probe``.

    Raises:
        InputError: ``probe`` is neither a tensor nor a sequence nor a mapping of arguments.
    """
    if isinstance(probe, Tensor):
        return model(probe)
    if isinstance(probe, Mapping):
        return model(**probe)
    if isinstance(probe, Sequence) and not isinstance(probe, str):
        return model(*probe)
    raise InputError(f"probe must be a tensor, a sequence or a mapping of arguments, got {type(probe).__name__}.")


def tensors(nested: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in ``nested`` lists, tuples and mappings."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        yield from tensors(list(nested.values()))
    elif isinstance(nested, list | tuple):
        for item in nested:
            yield from tensors(item)


def _names(model: nn.Module) -> dict[nn.Module, str]:
    """Return the name of each module outside the blocks; a module with several names keeps the first."""
    names: dict[nn.Module, str] = {}

    def visit(module: nn.Module, name: str) -> None:
        names[module] = name
        if isinstance(module, ReparamBlock):
            return
        for key, child in module.named_children():
            if child not in names:
                visit(child, f"{name}.{key}" if name else key)

    visit(model, "")
    return names


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    try:
        model.train(training)
        yield
    finally:
        for module, was in before.items():
            module.training = was


_LAYERS = (nn.Conv2d, nn.modules.batchnorm._BatchNorm)
"""The layers of a pair."""


class _Tracer(fx.Tracer):
    """Traces down to convolutions, normalisations and blocks, and records whose tensors are read on the way."""

    def __init__(self, names: dict[nn.Module, str], flow: _Flow) -> None:
        super().__init__()
        layers = [module for module in names if isinstance(module, _LAYERS)]
        self.owners = {id(t): names[layer] for layer in layers for t in _tensors_of(layer).values()}
        self.flow = flow

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*_LAYERS, ReparamBlock)) or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if id(attr_val) in self.owners:
            self.flow.reads.setdefault(self.owners[id(attr_val)], set()).add(attr)
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _tensors_of(layer: nn.Module) -> dict[str, Tensor]:
    own = layer._parameters | layer._buffers
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def _trace(module: nn.Module, names: dict[nn.Module, str], flow: _Flow) -> None:
    """Record in ``flow`` what tracing ``module`` shows, or else what its parts show."""
    try:
        graph = _Tracer(names, flow).trace(module)
    except Exception as error:  # the model's own code runs on stand-ins and may fail in any way
        flow.failures.append(f"{type(module).__name__}: {error}".splitlines()[0])
        if type(module).forward is nn.Sequential.forward:
            _neighbours(list(module.children()), names, flow)
        for child in module.children():
            if child in names and not isinstance(child, nn.Conv2d | ReparamBlock):
                _trace(child, names, flow)
        return
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    leaf = {node: module.get_submodule(cast(str, node.target)) for node in nodes}

    def label(node: fx.Node) -> str:
        if node.op == "output":
            return _OUTPUT
        return names[leaf[node]] if node in leaf else str(getattr(node.target, "__name__", node.target))

    for node in nodes:
        if isinstance(leaf[node], nn.Conv2d):
            flow.users.setdefault(names[leaf[node]], []).append({label(user) for user in node.users})
        elif isinstance(leaf[node], nn.modules.batchnorm._BatchNorm):
            flow.feeds.setdefault(names[leaf[node]], set()).update(label(arg) for arg in node.all_input_nodes)


def _neighbours(children: list[nn.Module], names: dict[nn.Module, str], flow: _Flow) -> None:
    for module, following in pairwise(children):
        if isinstance(module, nn.Conv2d):
            flow.users.setdefault(names[module], []).append({names[following]})
        if isinstance(following, nn.modules.batchnorm._BatchNorm):
            flow.feeds.setdefault(names[following], set()).add(names[module])


class _Watch(TorchFunctionMode):
    """Attributes every use of a convolution's output to the normalisation or function that makes it."""

    def __init__(self, names: dict[nn.Module, str], flow: _Flow) -> None:
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
        ids = {id(tensor) for tensor in tensors(nested)}
        for output, _, users in self.outputs:
            if id(output) in ids:
                users.add(user)

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
        name = watch.names.get(module) if isinstance(module, _LAYERS) else None
        if name is not None and name not in watch.running[-1:] and attribute in _tensors_of(module):
            watch.flow.reads.setdefault(name, set()).add(attribute)
        return original(module, attribute)

    nn.Module.__getattr__ = recorded  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__getattr__ = original  # type: ignore[method-assign]


def _run(model: nn.Module, probe: Probe, names: dict[nn.Module, str], flow: _Flow) -> None:
    """Record in ``flow`` what happens when ``model`` runs on ``probe``."""
    watch = _Watch(names, flow)
    watched = [module for module in names if isinstance(module, _LAYERS)]
    handles = [handle for module in watched for handle in watch.hook(module)]
    try:
        with _mode(model, training=False), torch.no_grad(), _recorded_reads(watch), watch:
            output = call(model, probe)
        watch.used(output, _OUTPUT)
    finally:
        for handle in handles:
            handle.remove()


def _listed(attributes: set[str]) -> str:
    return " and ".join(sorted(attributes))
