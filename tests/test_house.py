"""The house itself: its types, its lint, and which module may know what of which. Sources are read, not run."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = {path.stem: ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "hf_focal").glob("*.py"))}
OUTSIDE = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8"))
    for folder in ("examples", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
METHODS_OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}  # public, in spite of their names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None, str]]:
    """Each import, wherever it stands: the module, the name that is taken from it, the name that it gets."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, alias.asname or alias.name
        elif isinstance(node, ast.ImportFrom):
            module = "hf_focal" + f".{node.module}" * bool(node.module) if node.level else node.module
            for alias in node.names:
                if module == "hf_focal" and alias.name in PACKAGE:
                    yield f"hf_focal.{alias.name}", None, alias.asname or alias.name
                else:
                    yield module, alias.name, alias.asname or alias.name


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "hf_focal"


def defined_in(tree: ast.AST) -> set[str]:
    """Names that functions, classes, assignments and `self.name = ...` of a module make."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
    return names


def attributes(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Each attribute that is read, written or asked for by name: its line, the object's expression and its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, ast.unparse(node.value), node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            if len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                yield node.lineno, ast.unparse(node.args[0]), node.args[1].value


@pytest.mark.skipif(version("transformers").startswith("4."), reason="types are those of the newest versions")
def test_types():
    result = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff(command):
    result = subprocess.run([sys.executable, "-m", "ruff", *command, ROOT], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_no_underscored_name_crosses_a_module():
    modules = PACKAGE.keys() | {Path(file).stem for file in OUTSIDE}
    crossing = []
    for file, tree in (PACKAGE | OUTSIDE).items():
        crossing += [
            f"{file}: from {module} import {name}"
            for module, name, _ in imports(tree)
            if name and is_private(name) and name not in modules and file != "_upstream"
        ]
        imported = {alias for module, name, alias in imports(tree) if is_ours(module) and name is None}
        crossing += [
            f"{file}, line {line}: {owner}.{name}"
            for line, owner, name in attributes(tree)
            if owner in imported and is_private(name) and name not in modules
        ]
    assert crossing == []


def test_no_circle_of_imports():
    """Those in functions and for types count too. As `__init__` imports all, only the version may be taken from it."""
    known = {
        importer: {
            module.removeprefix("hf_focal").removeprefix(".") or "__init__"
            for module, name, _ in imports(tree)
            if is_ours(module) and name != "__version__"
        }
        for importer, tree in PACKAGE.items()
    }
    try:
        TopologicalSorter(known).prepare()
    except CycleError as error:
        pytest.fail(" < ".join(error.args[1]))


def test_private_attributes_of_other_libraries_stand_in_upstream():
    """A private attribute is another library's if its module makes no such name."""
    foreign = []
    for file, tree in PACKAGE.items():
        if file == "_upstream":
            continue
        own = defined_in(tree) | METHODS_OF_NAMED_TUPLES | PACKAGE.keys()
        foreign += [
            f"{file}, line {line}: {owner}.{name}"
            for line, owner, name in attributes(tree)
            if is_private(name) and name not in own
        ]
        foreign += [
            f"{file}: {module}, {name}"
            for module, name, _ in imports(tree)
            if not is_ours(module) and any(map(is_private, [*module.split("."), name or ""]))
        ]
    assert foreign == []


def test_dependencies_are_those_imported():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml")
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    extra = (ROOT / "examples/requirements-plots.txt").read_text("utf-8").splitlines()
    requirements += [line for line in extra if not line.startswith("#")]
    declared = {requirement.split(">")[0].replace("-", "_") for requirement in requirements}
    roots = {module.split(".")[0] for tree in PACKAGE.values() for module, _, _ in imports(tree)}
    third_party = roots - sys.stdlib_module_names - {"hf_focal"}
    distributions = packages_distributions()
    assert {distributions.get(root, [root])[0].replace("-", "_").lower() for root in third_party} == declared


def test_public_modules_say_what_is_public():
    unsaid = []
    for file, tree in PACKAGE.items():
        said = [
            ast.unparse(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        if not is_private(file) and not said:
            unsaid.append(f"{file} has no __all__")
        if not is_private(file) and file != "__init__" and said:
            names = ast.literal_eval(said[0])
            unsaid += [f"{file}.__all__ holds {name}" for name in names if is_private(name)]
            unsaid += [
                f"{file}.{node.name} is public, but not in __all__"
                for node in tree.body
                if isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and node.name not in [*names, "main"]
            ]
    assert unsaid == []
