"""Imports: no cycle, lower layers alone, declared dependencies alone."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import tpcli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(tpcli.__file__).parent
CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FILES = {
    ".".join(("tpcli", *path.relative_to(ROOT).with_suffix("").parts)): path
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py"
}
FILES |= {
    ".".join(("tpcli", *path.parent.relative_to(ROOT).parts)): path
    for path in ROOT.rglob("__init__.py")
}


@cache
def imports(module: str, *, everywhere: bool = True) -> frozenset[str]:
    """What `module` imports, in functions and for type checkers too unless told otherwise."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    return frozenset(_imported(module, tree, everywhere))


def _imported(module: str, tree: ast.AST, everywhere: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                is_package = FILES[module].name == "__init__.py"
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                home = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{home}.{alias.name}"
                yield inner if inner in FILES else home
        elif everywhere or not (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ):
            yield from _imported(module, node, everywhere)


def packages_of(module: str) -> Iterator[str]:
    """The packages whose __init__ runs before `module` does."""
    parts = module.split(".")
    return (".".join(parts[:i]) for i in range(2, len(parts)))


def test_no_cycle() -> None:
    """Imports in functions, for type checkers and through a package's __init__ counted."""
    graph = {
        module: {
            needed
            for name in imports(module)
            if name in FILES
            for needed in (name, *packages_of(name))
            if needed not in (module, "tpcli") and not module.startswith(f"{needed}.")
        }
        for module in FILES
        if module != "tpcli"
    }
    TopologicalSorter(graph).prepare()  # raises a CycleError that names them


def layers() -> dict[str, int]:
    """Package -> layer, from the table in docs/design.md."""
    page = (CHECKOUT / "docs/design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (`[^|]+) \|", page, re.MULTILINE)
    return {name: int(layer) for layer, names in rows for name in re.findall(r"`(\w+)`", names)}


def test_a_package_imports_lower_layers_alone() -> None:
    """The table in docs/design.md is the rule; `tpcli` itself hands out names of all of them."""
    layer = layers()
    top = {module.split(".")[1] for module in FILES if "." in module} - {"__main__"}
    assert set(layer) == top
    wrong = []
    for module in FILES:
        package = module.split(".")[1] if "." in module else "__main__"
        if package == "__main__":
            continue
        for name in imports(module):
            other = name.split(".")[1] if name.startswith("tpcli.") else package
            if other != package and layer[other] >= layer[package]:
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_the_package_stays_small_at_its_top() -> None:
    loose = [path.name for path in ROOT.glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= 6, loose
    assert len(list(ROOT.rglob("*.py"))) <= 160


def test_pooling_knows_neither_timm_nor_the_rest_of_the_package() -> None:
    for module in (name for name in FILES if name.startswith("tpcli.pooling")):
        for name in imports(module):
            assert not name.startswith("timm"), module
            inside = name.startswith(("tpcli.pooling", "tpcli.config.methods", "tpcli.errors"))
            assert inside or not name.startswith("tpcli"), (module, name)


def test_nothing_below_the_command_line_knows_it() -> None:
    for module in FILES:
        if not module.startswith(("tpcli.cli", "tpcli.__main__")):
            for name in imports(module):
                assert not name.startswith(("typer", "click", "tpcli.cli")), (module, name)


def test_schedules_options_and_files_import_no_torch() -> None:
    for module in (
        "tpcli.config.schedule",
        "tpcli.config.options",
        "tpcli.system.files",
        "tpcli.config.recipe",
    ):
        seen: set[str] = set()
        ahead = [module]
        while ahead:
            name = ahead.pop()
            if name in FILES and name not in seen:
                seen.add(name)
                found = imports(name, everywhere=False)
                assert not any(i.split(".")[0] in ("torch", "timm") for i in found), (module, name)
                ahead += [*found, *packages_of(name)]


def test_errors_of_the_library_name_arguments_and_no_flags() -> None:
    """The command line puts flags in their place; it alone knows how they are spelled."""
    spoken = re.compile(r"(?<![\w-])--[a-z]")
    for module, path in FILES.items():
        if module.startswith("tpcli.cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            said = "".join(part.value if is_text(part) else "x" for part in parts)
            text = re.sub(r"(tpcli|docker) [^\n]*", "", said)  # a whole command
            assert not spoken.search(text), (module, node, said)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


MODULE_OF = {"pillow": "PIL", "scikit-learn": "sklearn"}
"""The import name, where it isn't the distribution's."""

BROUGHT = {"triton": "torch"}
"""Imports that a declared dependency brings on some platforms only; reached where they exist."""

BEHIND_EXTRAS = {
    "onnx": "export",
    "onnx_ir": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "openvino": "openvino",
}
"""Imports that a plain install lacks, with the extra that brings them. They stand in functions, and
`tests/test_extras.py` and `.ci/plain` reach them without the extra."""


def modules_of(requirements: list[str]) -> set[str]:
    """Import names of the distributions in `requirements`."""
    names = [re.match(r"[\w.-]+", line)[0].lower() for line in requirements]  # type: ignore[index]
    return {MODULE_OF.get(name, name.replace("-", "_")) for name in names}


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Third-party packages that a file imports; whether only inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        for name in names:
            package = name.partition(".")[0]
            if package not in (*sys.stdlib_module_names, "tpcli", "tests"):
                yield package, id(node) in lazy


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (CHECKOUT / folder).rglob("*.py"))


def test_the_package_imports_declared_dependencies_alone() -> None:
    declared = modules_of(PROJECT["dependencies"])
    kernels = CHECKOUT / "tpcli/pooling/backends/triton/kernels.py"
    wrong = []
    for path in python_files("tpcli"):
        for package, lazy in imported(path):
            allowed = package in declared
            allowed |= package in BEHIND_EXTRAS and lazy
            allowed |= package in BROUGHT and (lazy or path == kernels)
            if not allowed:
                wrong.append(f"{path.relative_to(CHECKOUT)}: {package}")
    assert not wrong


def test_every_dependency_is_imported() -> None:
    used = {package for path in python_files("tpcli") for package, _ in imported(path)}
    assert modules_of(PROJECT["dependencies"]) <= used


def test_extras_bring_what_stands_behind_them() -> None:
    used = {package for path in python_files("tpcli") for package, _ in imported(path)}
    assert set(BEHIND_EXTRAS) <= used
    for package, extra in BEHIND_EXTRAS.items():
        assert package in modules_of(EXTRAS[extra])


def test_tests_and_benchmarks_import_what_dev_declares() -> None:
    """Host libraries of `third_party` tests are asked for by `importorskip`, not imported."""
    declared = modules_of([*PROJECT["dependencies"], *EXTRAS["dev"]])
    wrong = [
        f"{path.relative_to(CHECKOUT)}: {package}"
        for path in python_files("tests", "benchmarks")
        for package, lazy in imported(path)
        if package not in declared and not (lazy and package in ("openvino", *BROUGHT))
        if not (path.parent == CHECKOUT / "benchmarks" and (path.parent / f"{package}.py").exists())
        if package not in BROUGHT
    ]
    assert not wrong
