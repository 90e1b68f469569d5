"""Where the output of each convolution goes in a forward pass, and which normalisation it therefore belongs to."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["LAYERS", "OUTPUT", "DataFlow", "items_in", "kept_values", "own_tensors"]

LAYERS = (nn.Conv2d, nn.modules.batchnorm._BatchNorm)
"""The layers that are watched."""

OUTPUT = "the output of the model"


@dataclass
class DataFlow:
    """Where the outputs of a model's convolutions go; layers by qualified name.

    Attributes:
        users: for each convolution and each of its calls, what uses its output.
        feeds: what each batch normalisation is given.
        reads: the parameters and buffers of each layer that other code reads.
        failures: what could not be traced, and why.
        untrained: why the model did not run on the probe in train mode; ``None``: it did, or there is none.
    """

    users: dict[str, list[set[str]]] = field(default_factory=dict)
    feeds: dict[str, set[str]] = field(default_factory=dict)
    reads: dict[str, set[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    untrained: str | None = None

    @property
    def doubt(self) -> str | None:
        """Why what is known here may be incomplete, and the next step; ``None``: it is complete."""
        if self.failures:
            return (
                f"the forward pass could not be traced as a whole ({self.failures[0]}), so that code around these "
                "layers may use what lies between them; pass probe=<an input>"
            )
        if self.untrained is not None:
            return (
                f"in train mode the model did not run on the probe ({self.untrained}), so that code of that mode alone "
                "may use what lies between these layers; pass a probe on which the model trains"
            )
        return None

    def pair_or_reason(self, conv: str) -> tuple[str | None, str]:
        """Return the normalisation that belongs to ``conv``, or ``None`` and the reason."""
        if conv in self.reads:
            return None, f"the forward pass reads its {_listed(self.reads[conv])}, which a block does not have"
        if conv not in self.users:
            if self.failures:
                return None, f"the forward pass could not be traced ({self.failures[0]}); pass probe=<an input>"
            if self.untrained is not None:
                return None, f"the forward pass in eval mode never calls it, and {self.doubt}"
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


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers that ``module`` itself holds, by attribute."""
    own = module._parameters | module._buffers
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def kept_values(names: Mapping[nn.Module, str]) -> Iterator[tuple[str, Any]]:
    """Iterate over what the attributes of the modules hold, also in containers at any depth, each with a label."""
    for module, name in names.items():
        for attribute, value in vars(module).items():
            label = f"the attribute {name}.{attribute}" if name else f"the attribute {attribute}"
            yield from ((label, item) for item in items_in(value))


def items_in(value: Any) -> Iterator[Any]:
    """Yield what containers hold, at any depth; or the value, if it is none."""
    return _items(value, set())


def _items(value: Any, seen: set[int]) -> Iterator[Any]:
    if not isinstance(value, Mapping | list | tuple | set | deque):
        yield value
    elif id(value) not in seen:  # a container may hold itself
        seen.add(id(value))
        parts: Iterable[Any] = value.values() if isinstance(value, Mapping) else value
        for part in parts:
            yield from _items(part, seen)


def _listed(attributes: set[str]) -> str:
    return " and ".join(sorted(attributes))
