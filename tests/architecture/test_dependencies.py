"""What is imported is declared, what is declared is used, and the rooms for heavy things are kept."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("storage", "protocols", "agents", "daemon", "simulations")
WORKER = "agents/engine/worker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Where the import's name is not the distribution's.
DISTRIBUTIONS = {
    "array_api_compat": "array-api-compat",
    "array_api_strict": "array-api-strict",
    "nacl": "pynacl",
    "noise": "noiseprotocol",
    "Crypto": "pycryptodome",
    "huggingface_hub": "huggingface-hub",
    "prompt_toolkit": "prompt-toolkit",
}
# Imported by another dependency when we call it, and by that one not declared.
BEHIND_OTHERS = {"accelerate"}  # transformers, for GGUF files
# Declared for their commands and plugins, which nobody imports.
TOOLS = {"pytest-trio", "pytest-cov", "pytest-xdist", "ruff", "mypy", "import-linter"}


def declared(*extras: str) -> set[str]:
    """The distributions named under the extras of pyproject.toml; "" stands for the daemon's own."""
    requirements = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return {
        re.split(r"[<>=~!\[; ]", line)[0].lower().replace("_", "-") for extra in extras for line in requirements[extra]
    }


@cache
def imported(folder: str) -> dict[str, set[str]]:
    """Every distribution that the folder imports, with the files that do. An import at a distance counts too."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for module in imports_of(ast.parse(path.read_text())):
            top = module.partition(".")[0]
            if top not in {*sys.stdlib_module_names, *LAYERS}:
                name = DISTRIBUTIONS.get(top, top.lower())
                found.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    return found


def imports_of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def used_by_the_packages() -> dict[str, set[str]]:
    every: dict[str, set[str]] = {}
    for layer in LAYERS:
        for name, files in imported(layer).items():
            every.setdefault(name, set()).update(files)
    return every


def test_the_daemon_imports_what_it_declares_and_nothing_else():
    outside = {
        name for name, files in used_by_the_packages().items() if not all(file.startswith(WORKER) for file in files)
    }
    assert outside - declared("mcp") == declared("")


def test_what_speaks_mcp_imports_what_its_extra_declares_and_is_itself_imported_late():
    theirs = declared("mcp") - declared("")
    files = {name: found for name, found in used_by_the_packages().items() if name in theirs}
    assert set(files) == theirs
    assert set().union(*files.values()) == {f"agents/tools/{name}.py" for name in ("servers", "stdio", "streams")}
    code = "import sys, agents.roster.crew, agents.tools; agents.tools.tools(); print('mcp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_worker_imports_what_the_engine_declares_and_nothing_else():
    assert set(imported(WORKER)) - declared("") == declared("engine") - BEHIND_OTHERS


def test_the_tests_import_what_is_declared_and_nothing_else():
    names = set(imported("tests")) - {
        "tests",
        "flwr",
        "langgraph",
        "a2a",
        "tantivy",
    }  # what is run as a command; peers in environments of their own
    assert names <= declared("", "engine", "oracles", "dev")
    assert declared("oracles", "dev") - TOOLS <= names


def test_what_the_engine_declares_is_imported_in_its_worker_alone():
    engine = declared("engine")
    strays = {
        f"{file} imports {name}"
        for name, files in used_by_the_packages().items()
        for file in files
        if name in engine and not file.startswith(f"{WORKER}/")
    }
    assert not strays


def test_the_worker_is_spawned_and_never_imported():
    module = WORKER.replace("/", ".")
    importers = {
        path.relative_to(ROOT).as_posix()
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*.py")
        if not path.is_relative_to(ROOT / WORKER)
        and any(f"{name}.".startswith(f"{module}.") for name in imports_of(ast.parse(path.read_text())))
    }
    assert not importers


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())])
def test_every_range_has_two_ends(line):
    assert re.fullmatch(r"[A-Za-z0-9_-]+>=[\d.]+,<[\d.]+", line)


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
def test_the_names_of_distributions_are_as_installed(name):
    if name in packages_distributions():
        assert DISTRIBUTIONS[name] in {one.lower().replace("_", "-") for one in packages_distributions()[name]}
