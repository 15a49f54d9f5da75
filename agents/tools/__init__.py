"""The tools of agents, a file for each kind of thing: what stands in a file's `TOOLS` is found here.

A tool does no more than its agent's policy allows, whoever wrote the plan or the prompt that asks for it. What it
returns came from outside: it is bounded, recorded, and given to a model as data that it need not obey.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.tools.tool import Tool

_NONE = ("tool", "confined", "ranking", "addresses", "servers", "stdio", "streams", "jail")


@cache
def tools() -> "Mapping[str, Tool]":
    """Every tool by name. Raises: ValueError for two of one name."""
    found: dict[str, Tool] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NONE):
        for tool in importlib.import_module(f"{__name__}.{name}").TOOLS:
            if found.setdefault(tool.name, tool) is not tool:
                raise ValueError(f"two tools are called {tool.name}")
    return MappingProxyType(dict(sorted(found.items())))
