"""The rules, pre-steps and server steps there are: what lies in their folders, by the name a plan calls them."""

import pkgutil
from importlib import import_module
from types import ModuleType
from typing import Final, TypeVar

import msgspec

from agents.aggregation import before, lora, rules, server
from agents.aggregation.lora.adapters import LoraWay
from agents.aggregation.rule import Before, Rule, ServerStep
from agents.aggregation.updates import CannotAggregate

S = TypeVar("S", bound=msgspec.Struct)


def _found_in(package: ModuleType, base: type[S], *, with_hidden: bool = False) -> dict[str, type[S]]:
    found: dict[str, type[S]] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        for item in vars(import_module(f"{package.__name__}.{module}")).values():
            is_one = isinstance(item, type) and issubclass(item, base) and item is not base
            if is_one and (with_hidden or item.__name__[0] != "_"):
                tag = str(item.__struct_config__.tag)
                assert found.setdefault(tag, item) is item, f"two files define {tag}"
    return found


RULES: Final = _found_in(rules, Rule)
BEFORE: Final = _found_in(before, Before)
SERVER: Final = _found_in(server, ServerStep)
_IN_ROUNDS: Final = _found_in(server, ServerStep, with_hidden=True)
LORA: Final = _found_in(lora, LoraWay)


def rule_of(settings: object) -> Rule:
    """A rule from a plan, such as {"rule": "krum", "n_bad": 2}. Raises: CannotAggregate."""
    return _made(settings, "rule", RULES)


def before_of(settings: object) -> Before:
    """A pre-step from a plan. Raises: CannotAggregate."""
    return _made(settings, "before", BEFORE)


def server_of(settings: object) -> ServerStep:
    """A server step from a plan. Raises: CannotAggregate."""
    return _made(settings, "server", SERVER)


def server_in_round(settings: object) -> ServerStep:
    """A server step as it is in one round: also one that is made of a plan's, and that no plan can name.

    Raises: CannotAggregate.
    """
    return _made(settings, "server", _IN_ROUNDS)


def lora_of(settings: object) -> LoraWay:
    """A way to combine adapters from a plan. Raises: CannotAggregate."""
    return _made(settings, "lora", LORA)


def _made(settings: object, field: str, known: dict[str, type[S]]) -> S:
    name = settings.get(field) if isinstance(settings, dict) else None
    if not isinstance(name, str) or name not in known:
        raise CannotAggregate(f"there is no {field} {str(name)[:40]!r}; there are: {', '.join(sorted(known))}")
    try:
        return msgspec.convert(settings, known[name])
    except msgspec.ValidationError as error:
        form = f'{{ {field} = "{name}", ... }}'
        raise CannotAggregate(
            f"the settings of {name} are not valid: {error}. A plan's file has them: {form}"
        ) from None
