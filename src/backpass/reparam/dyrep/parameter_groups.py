"""The parameter groups of an optimizer while its model gains and loses parameters."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn, optim

from backpass._internal.inner_optimizer import inner_optimizer
from backpass.errors import InputError

__all__ = ["GroupOf", "ParameterGroups"]

GroupOf = Callable[[str, nn.Parameter], int]
"""The index of the parameter group that a new parameter belongs to, from its name and itself."""


class ParameterGroups:
    """Keeps the groups of ``optimizer`` equal to the parameters of ``model``.

    The group dicts stay the same objects, since schedulers hold them. Within a group the parameters are sorted by
    name, since an optimizer's state dict knows them by position. A parameter keeps its group and its state;
    the state of one that has left the model is deleted. Parameters that were never the model's stay, last.

    Args:
        model: the module whose parameters change.
        optimizer: holds its parameters, in one group or in several.
        group_of: which group a new parameter enters. Default: the group that already holds all parameters of its
            kind, where biases and other 1-D parameters are one kind and kernels the other.

    Raises:
        InputError: a parameter of the model that needs a gradient is in no group; or the parameters of one kind
            are in several groups, and ``group_of`` is not given.
    """

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, group_of: GroupOf | None = None) -> None:
        self.model = model
        self.optimizer = inner_optimizer(optimizer)  # a wrapper may have a state that is not that of the kernels
        self._known = set(model.parameters())
        index = self._index()
        missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in index]
        if missing:
            raise InputError(
                f"expected an optimizer of all parameters that need a gradient, got one without {missing[0]} "
                f"({len(missing)} such parameters); build it from the parameters of this very model, before any wrapper"
            )
        self._group_of = group_of or self._by_kind(index)
        self.update()

    def placement(self) -> dict[str, int]:
        """Return the group of each parameter of the model, by name; without those that the optimizer does not hold."""
        index = self._index()
        return {name: index[id(p)] for name, p in self.model.named_parameters() if id(p) in index}

    def check(self, placement: Mapping[str, int]) -> None:
        """Raise InputError if ``placement`` is not one of the model's present parameters in the optimizer's groups."""
        present = dict(self.model.named_parameters())
        missing = {name for name, parameter in present.items() if parameter.requires_grad} - placement.keys()
        foreign = placement.keys() - present.keys()
        count = len(self.optimizer.param_groups)
        outside = set(placement.values()) - set(range(count))
        if missing or foreign or outside:
            got = f"none for {min(missing)}" if missing else f"group {min(outside)}" if outside else min(foreign)
            raise InputError(
                f"expected a state with one of {count} groups for each parameter of {type(self.model).__name__} "
                f"that trains, got {got}; build network and optimizer as in the run that saved the state"
            )

    def update(self, placement: Mapping[str, int] | None = None) -> None:
        """Make the groups those of the model's present parameters.

        Args:
            placement: the group of each parameter, from :meth:`placement` of the run that is resumed: ``group_of`` may
                go by names, and a parameter's name changes when the convolution that has it grows. Default: parameters
                keep their group, and ``group_of`` places new ones.

        Raises:
            InputError: ``group_of`` returned no index of a group. The groups are then left unchanged, as after an error
                inside ``group_of``.
        """
        groups = self.optimizer.param_groups
        index = self._index()
        members: list[list[tuple[str, nn.Parameter]]] = [[] for _ in groups]
        present = dict(sorted(self.model.named_parameters()))
        for name, parameter in present.items():
            if placement is not None:
                chosen = placement.get(name)
            elif id(parameter) in index or parameter in self._known:
                chosen = index.get(id(parameter))
            else:
                chosen = self._group_of(name, parameter)
                if chosen not in range(len(groups)):
                    raise InputError(
                        f"expected group_of to return the index of one of {len(groups)} parameter groups, got "
                        f"{chosen!r} for {name}; correct the function, or give the optimizer that group"
                    )
            if chosen is not None:
                members[chosen].append((name, parameter))
        kept = {id(parameter) for parameter in present.values()}
        for group, ours in zip(groups, members, strict=True):
            others = [p for p in group["params"] if id(p) not in kept and p not in self._known]
            for parameter in group["params"]:
                if parameter in self._known and id(parameter) not in kept:
                    self.optimizer.state.pop(parameter, None)
            if "param_names" in group:
                names = dict(zip(map(id, group["params"]), group["param_names"], strict=True))
                group["param_names"] = [name for name, _ in ours] + [names[id(p)] for p in others]
            group["params"] = [parameter for _, parameter in ours] + others
        self._known = set(present.values())

    def _index(self) -> dict[int, int]:
        """Return the group of each parameter that the optimizer holds, by its id."""
        return {id(p): i for i, group in enumerate(self.optimizer.param_groups) for p in group["params"]}

    def _by_kind(self, index: dict[int, int]) -> GroupOf:
        kinds: dict[bool, set[int]] = {True: set(), False: set()}
        for parameter in self.model.parameters():
            if id(parameter) in index:
                kinds[parameter.ndim <= 1].add(index[id(parameter)])
        if any(len(found) > 1 for found in kinds.values()):
            raise InputError(
                "expected one parameter group with all kernels and one with all 1-D parameters, got kernels in the "
                f"groups {sorted(kinds[False])} and 1-D parameters in {sorted(kinds[True])}, so that a new parameter "
                "has no obvious group; pass group_of, a function (name, parameter) -> index"
            )
        single = {flat: min(found) for flat, found in kinds.items() if found}
        return partial(_group_of_kind, single)


def _group_of_kind(groups: Mapping[bool, int], name: str, parameter: nn.Parameter) -> int:
    flat = parameter.ndim <= 1
    return groups[flat if flat in groups else not flat]
