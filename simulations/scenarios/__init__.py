"""Scenarios: one module each, found by scanning. `python -m simulations NAME` runs one.

A scenario module has `SUMMARY`, one line of text, `add_arguments(parser)`, and `run(args)`, which returns what is
printed. The same arguments give the same text.
"""

import argparse
import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Final, NamedTuple


class Scenario(NamedTuple):
    """One scenario, by the name of its module."""

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], str]


def _scan() -> dict[str, Scenario]:
    found = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = import_module(f"{__name__}.{module.name}")
        found[module.name] = Scenario(module.name, loaded.SUMMARY, loaded.add_arguments, loaded.run)
    return found


SCENARIOS: Final = _scan()
