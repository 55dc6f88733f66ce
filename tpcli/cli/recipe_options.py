"""Options made from the fields of `Recipe`, and the TOML file that gives them defaults."""

from __future__ import annotations

import sys
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from tpcli.errors import UserError, did_you_mean
from tpcli.recipe import Recipe, recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Given:
    """What the user asked for; None is what was left out."""

    @property
    def recipe(self) -> Recipe:
        """The recipe: what was given, the rest default."""
        return recipe({item.name: getattr(self, item.name) for item in fields(Recipe)})


NOT_IN_FILES = {"config", "as-json", "force", "resume"}


def _types(name: str) -> tuple[Any, ...]:
    kind = get_type_hints(Recipe)[name]
    return tuple(t for t in get_args(kind) or (kind,) if t is not type(None))


def _option(name: str, about: Any, default: object) -> Any:
    (plain,) = _types(name)
    shown = True if default is None else str(default)
    option = typer.Option(help=about["help"], rich_help_panel=about["panel"], show_default=shown)
    return Annotated[plain | None, option]


if TYPE_CHECKING:
    from tpcli.cli.options import DataGroup
    from tpcli.finetune import TrainingData
    from tpcli.models import LoadedModel

    RecipeGroup = Given
else:
    RecipeGroup = make_dataclass(
        "RecipeGroup",
        [(f.name, _option(f.name, f.metadata, f.default), None) for f in fields(Recipe)],
        bases=(Given,),
        frozen=True,
    )


def read_toml(option: str, path: Path) -> dict[str, Any]:
    """The keys of a TOML file.

    Raises:
        UserError: no such file, or no TOML.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{option} {path} does not exist; check the path.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{option} {path} is not a readable TOML file: {error}.") from None
    return values


def recipe_of_file(path: Path | None, *, epochs: int) -> Recipe:
    """A recipe from a TOML file of its options, for so many epochs.

    Raises:
        UserError: the file can't be read, or has a key that is none of a recipe's.
    """
    values: dict[str, Any] = {} if path is None else read_toml("--finetune-config", path)
    known = {f.name for f in fields(Recipe)} - {"epochs"}
    for key in values:
        if key.replace("-", "_") not in known:
            raise UserError(
                f"--finetune-config {path} has the key {key!r}, which is no option of a recipe."
                f"{did_you_mean(key, [name.replace('_', '-') for name in known])}"
            )
    return recipe({**{key.replace("-", "_"): v for key, v in values.items()}, "epochs": epochs})


def open_training(
    source: DataGroup, loaded: LoadedModel, recipe: Recipe, train_split: str
) -> TrainingData:
    """The images to train on and those to measure on."""
    from tpcli.finetune import open_data

    return open_data(
        source.data or "demo",
        loaded.data_config,
        recipe,
        train_split=train_split,
        split=source.split,
        data_dir=source.data_dir,
        download=source.download,
        limit=source.limit,
    )


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Let the keys of a TOML file be the defaults of the command's options.

    Raises:
        UserError: no such file, no TOML, or a key that is no option; names it.
    """
    if path is None:
        return None
    values = read_toml("--config", path)
    known = {str(p.name).replace("_", "-") for p in context.command.params} - NOT_IN_FILES
    whole = {f.name for f in fields(Recipe) if int in _types(f.name)}
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if key.replace("_", "-") not in known:
            raise UserError(
                f"--config {path} has the key {key!r}, which is no option of this command."
                f"{did_you_mean(key, known)}"
            )
        if isinstance(value, float) and name in whole:
            raise UserError(f"--config {path}: {key} = {value} is no whole number; give one.")
        if isinstance(value, dict):
            raise UserError(f"--config {path}: {key} is a table; give options as plain keys.")
        defaults[name] = value
    context.default_map = defaults
    return path
