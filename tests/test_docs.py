"""The documents: links that lead somewhere, commands and names as they are."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest
from typer.main import get_command

import tpcli
from tpcli.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "tpcli/demo/README.md"])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """What GitHub and MkDocs make of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_links_of_included_files_lead_somewhere_from_the_docs_too() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for name in re.findall(r'^--8<-- "([^"]+\.md)"', page.read_text(), re.MULTILINE):
            for link in LINK.findall((ROOT / name).read_text()):
                path = link.partition("#")[0]
                assert "://" in link or not path or (page.parent / path).exists(), f"{name}: {link}"


def test_every_page_is_in_the_navigation() -> None:
    names = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(names) == sorted(
        str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")
    )


def test_the_command_reference_is_that_of_the_commands() -> None:
    module = runpy.run_path(str(ROOT / "docs" / "commands.py"))
    message = "run `python docs/commands.py` and commit what it writes"
    assert module["PAGE"].read_text() == module["page"](), message


def test_the_python_reference_has_every_public_name() -> None:
    listed = re.findall(r"^::: (\S+)", (ROOT / "docs/reference/api.md").read_text(), re.MULTILINE)
    names = {name.rsplit(".", 1)[1] for name in listed}
    assert set(tpcli.__all__) - {"__version__"} <= names


def test_docstrings_describe_arguments_that_exist() -> None:
    wrong: list[str] = []
    for path in sorted((ROOT / "tpcli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            section = re.search(
                r"^Args:\n((?: {4}.*\n?)+)", ast.get_docstring(node) or "", re.MULTILINE
            )
            described = re.findall(r"^ {4}(\S[^:]*):", section[1], re.MULTILINE) if section else []
            arguments = node.args
            taken = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            taken += filter(None, [arguments.vararg, arguments.kwarg])
            names = {argument.arg for argument in taken}
            wrong += [f"{path}: {node.name}: {name}" for name in described if name not in names]
    assert not wrong


CHECK = runpy.run_path(str(ROOT / "docs" / "check.py"))
"""What `make docs-check` runs."""


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand-ins")
    CHECK["stand_ins"](folder)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_accepted(
    page: Path, stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options exist and take the values that are given; `make docs-check` runs the commands."""
    monkeypatch.chdir(stand_ins)
    group = get_command(app)
    text = page.read_text()
    lines = [*CHECK["commands"](text), *(case.command for case in CHECK["shown"](page))]
    for line in lines:
        name, *words = CHECK["standing_in"](line)[1:]
        group.commands[name].make_context(name, words)  # type: ignore[attr-defined]


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"^make ([\w-]+)|`make ([\w-]+)`", page.read_text(), re.MULTILINE):
            assert "".join(target) in targets, page.name


def test_the_check_of_outputs_sees_a_wrong_value() -> None:
    differences = CHECK["differences"]
    table = "method   top-1   images/s\nward     97.74        195"
    assert not list(differences(table, table.replace("195", "230"), ("images/s",)))
    assert list(differences(table, table.replace("97.74", "97.75"), ("images/s",)))
    assert list(differences(table, table + "\nmore", ("images/s",)))


def test_the_tutorial_in_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/tutorials/library.md").read_text()
    program = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    exec(compile(program, "library.md", "exec"), {})
    assert "tensor" in capsys.readouterr().out
