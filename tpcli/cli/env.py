"""`tpcli env`: what it runs on."""

from __future__ import annotations

from pathlib import Path

import typer

from tpcli.cli.groups import JsonOption
from tpcli.cli.settings import find_settings
from tpcli.cli.spread import add


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "env", env)


def env(as_json: JsonOption = False) -> None:
    """Show versions, devices, which loops pool on this machine, and settings: for bug reports.

    Examples:
        tpcli env
        tpcli env --json
    """
    from tpcli.cli import render
    from tpcli.environment import environment

    render.quiet()
    where, _ = find_settings(Path.cwd())
    facts = {**environment(), "settings": where or "none"}
    if as_json:
        render.print_json(facts)
    else:
        render.print_facts(list(facts.items()))
