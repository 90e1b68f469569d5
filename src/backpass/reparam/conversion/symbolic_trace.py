"""The data flow of a model as symbolic tracing (``torch.fx``) shows it."""

import inspect
from collections import defaultdict
from itertools import pairwise
from typing import Any, cast

from torch import fx, nn

from backpass.reparam.blocks.block import ReparamBlock
from backpass.reparam.conversion.data_flow import LAYERS, OUTPUT, DataFlow, kept_values, own_tensors

__all__ = ["trace"]


def trace(module: nn.Module, names: dict[nn.Module, str], flow: DataFlow) -> None:
    """Record in ``flow`` what tracing ``module`` shows, or else what tracing its parts shows.

    Where its forward pass has defaults, it is traced a second time with those, since code such as ``if mask is None``
    takes another branch then. Parts do not show what the code of ``module`` does with their layers; ``flow.failures``
    then holds the reason.

    Args:
        module: the model, or a part of it.
        names: the name of each module whose layers count.
        flow: is added to.
    """
    try:
        for defaults in _defaults(module):
            _record(module, names, flow, defaults)
    except Exception as error:  # the model's own code runs on stand-ins and may fail in any way
        flow.failures.append(f"{type(module).__name__}: {error}".splitlines()[0])
        if type(module).forward is nn.Sequential.forward:
            _neighbours(list(module._modules.values()), names, flow)  # children() would leave repeated ones out
        for child in module.children():
            if child in names and not isinstance(child, nn.Conv2d | ReparamBlock):
                trace(child, names, flow)


def _defaults(module: nn.Module) -> list[dict[str, Any]]:
    """Return the arguments that are no stand-ins in each of the traces: none, and then the defaults."""
    others = list(inspect.signature(type(module).forward).parameters.values())[2:]  # after self and the input
    defaults = {p.name: p.default for p in others if isinstance(p.default, bool | int | float | str | None)}
    return [{}, defaults] if defaults else [{}]


def _record(module: nn.Module, names: dict[nn.Module, str], flow: DataFlow, defaults: dict[str, Any]) -> None:
    graph = _Tracer(names, flow).trace(module, defaults or None)
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    leaf = {node: module.get_submodule(cast(str, node.target)) for node in nodes}

    def label(node: fx.Node) -> str:
        if node.op == "output":
            return OUTPUT
        return names[leaf[node]] if node in leaf else str(getattr(node.target, "__name__", node.target))

    kept: dict[fx.Node, set[str]] = defaultdict(set)
    for place, value in kept_values(names):
        if isinstance(value, fx.Proxy):
            kept[value.node].add(place)
    for node in nodes:
        if isinstance(leaf[node], nn.Conv2d):
            flow.users.setdefault(names[leaf[node]], []).append({label(user) for user in node.users} | kept[node])
        elif isinstance(leaf[node], nn.modules.batchnorm._BatchNorm):
            flow.feeds.setdefault(names[leaf[node]], set()).update(label(arg) for arg in node.all_input_nodes)


def _neighbours(children: list[nn.Module | None], names: dict[nn.Module, str], flow: DataFlow) -> None:
    for module, following in pairwise(children):
        if module is None or following is None:
            continue
        if isinstance(module, nn.Conv2d):
            flow.users.setdefault(names[module], []).append({names[following]})
        if isinstance(following, nn.modules.batchnorm._BatchNorm):
            flow.feeds.setdefault(names[following], set()).add(names[module])


class _Tracer(fx.Tracer):
    """Traces down to convolutions, normalisations and blocks, and records whose tensors are read on the way."""

    def __init__(self, names: dict[nn.Module, str], flow: DataFlow) -> None:
        super().__init__()
        layers = [module for module in names if isinstance(module, LAYERS)]
        self.owners = {id(t): names[layer] for layer in layers for t in own_tensors(layer).values()}
        self.flow = flow

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*LAYERS, ReparamBlock)) or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if id(attr_val) in self.owners:
            self.flow.reads.setdefault(self.owners[id(attr_val)], set()).add(attr)
        return super().getattr(attr, attr_val, parameter_proxy_cache)
