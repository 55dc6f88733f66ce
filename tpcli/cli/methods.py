"""`tpcli methods`: what tokens can be pooled by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from tpcli.cli.options import JsonOption

if TYPE_CHECKING:
    from tpcli.pooling import Method


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("methods")(methods)


def methods(as_json: JsonOption = False) -> None:
    """List pooling methods: where each is from, its options and what they are by default.

    Example: tpcli methods --json
    """
    from tpcli import pooling
    from tpcli.cli import render

    entries = [describe(method) for method in pooling.methods()]
    if as_json:
        render.print_json(entries)
        return
    rows = [
        [
            entry["name"] + ("*" if entry["is_default"] else ""),
            f"{entry['summary']}\n{entry['paper']}",
            "\n".join(_settings(entry)),
            entry["class_token"],
        ]
        for entry in entries
    ]
    columns = ["method", "what it does, and its paper", "options", "class token"]
    caption = (
        "Parameters of one method follow its name: --method atc:linkage=complete. "
        "The default is marked by *."
    )
    render.print_table("Pooling methods", columns, rows, caption)


def describe(method: Method) -> dict[str, Any]:
    """One method, in plain values."""
    from tpcli.options import DEFAULT_METHOD, pooling_options

    chosen = pooling_options(method.name).to_dict()
    weights = chosen["weights"] if "weights" in method.options else None
    return {
        "name": method.name,
        "is_default": method.name == DEFAULT_METHOD,
        "summary": method.summary,
        "paper": method.paper,
        "options": {name: chosen[name] for name in method.options},
        "accepted_weights": None if method.weights is None else list(method.weights),
        "parameters": [
            {
                "name": parameter.name,
                "default": parameter.default,
                "choices": None if parameter.choices is None else list(parameter.choices),
                "summary": parameter.summary,
            }
            for parameter in method.parameters
        ],
        "needs_class_token": weights == "class",
        "class_token": {"class": "needed", "attention": "used if there"}.get(str(weights), "not used"),
    }


def _settings(entry: dict[str, Any]) -> list[str]:
    """Parameters first, then the options that matter."""
    lines = [f":{p['name']}={p['default']}" for p in entry["parameters"]]
    for name, value in entry["options"].items():
        if value is not None:
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                lines.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                lines.append(f"--{flag} {value}")
    return lines
