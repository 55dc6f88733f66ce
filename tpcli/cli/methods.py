"""`tpcli methods`: list the pooling methods."""

from __future__ import annotations

from typing import Any

from tpcli.config.methods import METHODS, Description
from tpcli.config.options import DEFAULT_METHOD, pooling_options

from . import render
from .groups import JsonOption
from .values import typed

CLASS_TOKEN = {"class": "needed", "attention": "used if there"}


def methods(as_json: JsonOption = False) -> None:
    """List the pooling methods: source, options and their defaults.

    Examples:
        tpcli methods
        tpcli methods --json
    """

    entries = [describe(method) for method in METHODS.values()]
    if as_json:
        render.print_json(entries)
        return
    width = max(len(str(entry["name"])) for entry in entries) + 2
    for entry in entries:
        lines = [entry["summary"], entry["paper"], *_settings(entry)]
        name = entry["name"] + ("*" if entry["is_default"] else "")
        print(f"{name:<{width}}" + f"\n{'':<{width}}".join(lines) + "\n")
    print(
        "* the default. Parameters of a method follow its name: --method atc:linkage=complete.\n"
        "Options are shown with their defaults."
    )


def describe(method: Description) -> dict[str, Any]:
    """One method, in plain values."""
    chosen = pooling_options(method.name)
    weights = chosen.weights if "weights" in method.options else None
    return {
        "name": method.name,
        "is_default": method.name == DEFAULT_METHOD,
        "summary": method.summary,
        "paper": method.paper,
        "options": {name: getattr(chosen, name) for name in method.options},
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
        "class_token": CLASS_TOKEN.get(str(weights), "not used"),
    }


def _settings(entry: dict[str, Any]) -> list[str]:
    """Parameters, options that matter, and what it needs, a line each."""
    lines = [
        f":{p['name']}={p['default']}  {p['summary']}"
        + (f" ({', '.join(p['choices'])})" if p["choices"] else "")
        for p in entry["parameters"]
    ]
    flags = [w for name, v in entry["options"].items() if v is not None for w in typed(name, v)]
    return [*lines, " ".join(flags), f"class token: {entry['class_token']}"]
