"""Defaults of options from TOML files: the project's settings, and the --config of fine-tuning."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tpcli.errors import UserError, did_you_mean

from .values import NUMBERS
from .verbosity import note

FILE, PROJECT, TABLE = "tpcli.toml", "pyproject.toml", "tpcli"
NOT_IN_FILES = {"config", "as_json", "force", "resume", "help", "version", "debug"}
SOURCES = "tpcli.sources"
"""Where in a context it is kept which option has its default from where."""
added: list[str] = []
"""What the settings of this run add to its command line."""


def read_toml(where: str, path: Path) -> dict[str, Any]:
    """The keys of a TOML file.

    where: what a message calls the file.

    Raises:
        UserError: no such file, or no TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where} is not a readable TOML file: {error}.") from None
    return values


def find_settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """The settings nearest to `folder`, in it or above: what to call them, and their keys.

    tpcli.toml takes precedence over the [tool.tpcli] of a pyproject.toml beside it. Files that
    another user could have put there are left out, with a note.

    Raises:
        UserError: they are not TOML.
    """
    for place in (folder, *folder.parents):
        path = place / FILE
        if path.is_file() and _is_trusted(path):
            return str(path), read_toml(str(path), path)
        path = place / PROJECT
        with suppress(OSError):  # another user's project may not be readable
            if f"tool.{TABLE}".encode() in path.read_bytes() and _is_trusted(path):
                values = read_toml(str(path), path).get("tool", {}).get(TABLE)
                if isinstance(values, dict):
                    return f"{path} [tool.{TABLE}]", values
    return "", {}


def _is_trusted(path: Path) -> bool:
    """Whether only this user or root could have written a file of settings; says so if not."""
    if not hasattr(os, "getuid"):
        return True
    here, file = path.parent.stat(), path.stat()
    if file.st_uid not in (os.getuid(), 0):
        reason = "belongs to another user"
    elif file.st_mode & stat.S_IWOTH:
        reason = "can be changed by every user"
    elif here.st_mode & stat.S_IWOTH and not here.st_mode & stat.S_ISVTX:
        reason = "is in a folder that every user can write to"
    else:
        return True
    note(f"ignored {path}: it {reason}")
    return False


def take_settings(context: Any) -> None:
    """Let the project's settings be the defaults of all commands.

    Keys beside each other are for every command that has such an option; those of a table are for
    the command of its name.

    Raises:
        UserError: a command or key that is not there, or a value of the wrong kind; names it.
    """
    added.clear()
    where, values = find_settings(Path.cwd())
    commands: dict[str, Any] = context.command.commands
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    for name in tables:
        if name not in commands:
            raise UserError(
                f"{where} has the table {name!r}, which is no command."
                f"{did_you_mean(name, commands)}"
            )
    shared = {key: value for key, value in values.items() if key not in tables}
    known = {name: options_of(command) for name, command in commands.items()}
    for key in shared:
        if not any(plain(key) in options for options in known.values()):
            every = {name for options in known.values() for name in options}
            raise UserError(
                f"{where} has the key {key!r}, which is no option of any command."
                f"{did_you_mean(plain(key), every)}"
            )
    defaults: dict[str, dict[str, Any]] = {}
    for name, options in known.items():
        own = {
            key: [value] if options[plain(key)].multiple and not isinstance(value, list) else value
            for key, value in shared.items()
            if plain(key) in options
        }
        table = tables.get(name, {})
        defaults[name] = checked(where, own, options) | checked(f"{where}: {name}", table, options)
    context.default_map = defaults
    chosen = context.invoked_subcommand
    context.meta[SOURCES] = dict.fromkeys(defaults.get(chosen, {}), where)
    added.extend(_flags(defaults.get(chosen, {}), known.get(chosen, {})))


def take_config(context: Any, path: Path | None) -> Path | None:
    """Let the keys of a TOML file be the defaults of the command's options.

    Raises:
        UserError: no such file, no TOML, or a key that is no option; names it.
    """
    if path is None:
        return None
    where = f"--config {path}"
    options = options_of(context.command, arguments=True)
    defaults = checked(where, read_toml(where, path), options)
    context.default_map = {**(context.default_map or {}), **defaults}
    context.meta.setdefault(SOURCES, {}).update(dict.fromkeys(defaults, where))
    return path


def plain(key: str) -> str:
    """A key as options are spelled."""
    return key.replace("_", "-")


def check_spelled_once(where: str, keys: Iterable[str]) -> None:
    """Raise where one option is given as `batch_size` and as `batch-size`."""
    seen: dict[str, str] = {}
    for key in keys:
        other = seen.setdefault(plain(key), key)
        if other != key:
            raise UserError(f"{where} has both {other!r} and {key!r}; keep one of them.")


def options_of(command: Any, *, arguments: bool = False) -> dict[str, Any]:
    """What a file may set, as it is typed without the dashes."""
    return {
        opt.lstrip("-").replace("_", "-"): parameter
        for parameter in command.params
        for opt in parameter.opts
        if parameter.name not in NOT_IN_FILES and (opt.startswith("--") or arguments)
    }


def checked(where: str, values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a file by the names of their parameters.

    Raises:
        UserError: a key that is no option, or a value of the wrong kind; names it.
    """
    defaults: dict[str, Any] = {}
    check_spelled_once(where, values)
    for key, value in values.items():
        option = options.get(plain(key))
        if option is None:
            raise UserError(
                f"{where} has the key {key!r}, which is no option of this command."
                f"{did_you_mean(plain(key), options)}"
            )
        if isinstance(value, dict):
            raise UserError(f"{where}: {key} is a table; give options as plain keys.")
        is_flag, is_list = getattr(option, "is_flag", False), getattr(option, "multiple", False)
        wanted = ""
        if is_flag != isinstance(value, bool):
            wanted = "true or false" if is_flag else "a value of its kind"
        elif is_list != isinstance(value, list):
            wanted = "a list" if is_list else "one value"
        elif not is_flag and getattr(option, "metavar", None) not in NUMBERS:
            items = value if is_list else [value]
            wanted = "" if all(isinstance(item, str) for item in items) else "text in quotes"
        if wanted:
            raise UserError(f"{where}: {key} = {value!r} can't be used; give {wanted}.")
        defaults[option.name] = value
    return defaults


def command_line() -> str:
    """The command of this run, with what its settings add to it."""
    return shlex.join(["tpcli", *sys.argv[1:], *added])


def _flags(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Defaults as one would type them, where nothing was typed."""
    typed = {word.partition("=")[0] for word in sys.argv}
    words: list[str] = []
    for option in {id(o): o for o in options.values()}.values():
        if option.name not in defaults or typed & {*option.opts, *option.secondary_opts}:
            continue
        value = defaults[option.name]
        if isinstance(value, bool):
            words += (option.opts if value else option.secondary_opts)[:1]
        else:
            for item in value if isinstance(value, list) else [value]:
                words += [option.opts[0], str(item)]
    return words
