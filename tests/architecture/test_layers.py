"""The house's rules that a machine can check."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("storage", "protocols", "agents", "daemon", "simulations")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_import_contracts_hold():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def classes_that_wait(tree: ast.Module) -> Iterator[ast.ClassDef]:
    for node in ast.walk(tree):
        is_port = isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
        if isinstance(node, ast.ClassDef) and not is_port:
            waits = (ast.Await, ast.AsyncFor, ast.AsyncWith)
            if any(isinstance(inner, waits) for inner in ast.walk(node)):
                yield node


@pytest.mark.parametrize("path", sources("protocols"), ids=name_of)
def test_no_class_of_a_protocol_waits(path):
    """Cores are classes and do no IO; shells are functions. The adapters of the network port are the exception."""
    if path.is_relative_to(ROOT / "protocols" / "net_libp2p"):
        pytest.skip("the adapter that implements the network port")
    found = [node.name for node in classes_that_wait(ast.parse(path.read_text()))]
    assert not found, f"{name_of(path)}: {found} await; move that to functions at module level"


def test_the_rule_on_waiting_sees_what_it_should():
    tree = ast.parse("class A:\n  async def f(self):\n    await g()\nclass B(Protocol):\n  async def f(self): ...\n")
    assert [node.name for node in classes_that_wait(tree)] == ["A"]


@pytest.mark.parametrize("folder", [*LAYERS, "tests"])
def test_files_and_functions_are_short(folder):
    too_long = []
    for path in sources(folder):
        text = path.read_text()
        if text.count("\n") > MAX_FILE_LINES:
            too_long.append(f"{name_of(path)}: {text.count(chr(10))} lines")
        if folder != "tests":
            too_long += [f"{name_of(path)}: {name} has {n} lines" for name, n in long_functions(text)]
    assert not too_long, "\n".join(too_long)


def long_functions(text: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node) is not None
            start = node.body[1].lineno if documented and len(node.body) > 1 else node.lineno
            n_lines = (node.end_lineno or start) - start + 1
            if n_lines > MAX_FUNCTION_LINES:
                yield node.name, n_lines


def test_the_tests_are_no_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_top_level_is_as_designed():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    assert folders - {"build", "dist", "node_modules"} == {*LAYERS, "tests"}
