"""What else is attached to a layer, and would be lost if a block replaced it."""

from collections import defaultdict
from collections.abc import Iterator

from torch import nn

from backpass.reparam.conversion.data_flow import items_in, own_tensors

__all__ = ["obstacles"]

_HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
    "_state_dict_pre_hooks": "a state-dict pre-hook",
    "_state_dict_hooks": "a state-dict hook",
    "_load_state_dict_pre_hooks": "a load-state-dict pre-hook",
    "_load_state_dict_post_hooks": "a load-state-dict post-hook",
}


def obstacles(model: nn.Module) -> dict[nn.Module, str]:
    """Return the modules of ``model`` that cannot be replaced, and why; the reasons are about "it".

    Such a module has a hook, or a forward function of its own, which its replacement would not run; it shares a
    parameter or a buffer with another module, and would no longer; or the model holds it outside its registered
    modules (in a list, say), where it would stay. One module under several names is no obstacle.

    >>> tied = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    >>> tied[1].weight = tied[0].weight
    >>> obstacles(tied)[tied[1]]
    'it shares its weight with 0'
    """
    names = {module: name for name, module in model.named_modules()}
    owners: dict[int, list[nn.Module]] = defaultdict(list)
    elsewhere: dict[nn.Module, str] = {}
    for module, name in names.items():
        for tensor in own_tensors(module).values():
            owners[id(tensor)].append(module)
        for attribute, held in _held_unregistered(module):
            elsewhere.setdefault(held, f"{name}.{attribute}" if name else attribute)
    found = {}
    for module in names:
        sharing = [(attribute, owners[id(tensor)]) for attribute, tensor in own_tensors(module).items()]
        shared = [(attribute, those) for attribute, those in sharing if len(those) > 1]
        if hooks := [words for attribute, words in _HOOKS.items() if getattr(module, attribute, None)]:
            found[module] = f"it has {' and '.join(hooks)}, which a block would not run"
        elif "forward" in vars(module):
            found[module] = "its forward function was replaced, and a block would not run it"
        elif shared:
            attribute, those = shared[0]
            found[module] = f"it shares its {attribute} with {', '.join(names[m] for m in those if m is not module)}"
        elif module in elsewhere:
            found[module] = f"it is also held outside the registered modules, in {elsewhere[module]}"
    return found


def _held_unregistered(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the modules that attributes of ``module``, or containers in them, hold without registering them."""
    for attribute, value in vars(module).items():
        if attribute == "_modules":
            continue
        yield from ((attribute, item) for item in items_in(value) if isinstance(item, nn.Module))
