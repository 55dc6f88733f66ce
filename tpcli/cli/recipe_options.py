"""Options made from the fields of `Recipe`, and the TOML file that gives them defaults."""

from __future__ import annotations

import sys
from dataclasses import Field, dataclass, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpcli.cli.kinds import SPLIT
from tpcli.cli.values import FILE, NUMBERS, Value, checked, flag, number, one_of, option, whole
from tpcli.errors import UserError, did_you_mean
from tpcli.recipe import Recipe, recipe, types_of
from tpcli.specs import DEMO

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


FINETUNE_PANEL = "Fine-tuning"
NOT_IN_FILES = {"config", "as_json", "force", "resume", "help"}


def _value(item: Field[Any], plain: type) -> Value:
    """What the field accepts."""
    about = item.metadata
    if about["choices"]:
        return one_of(about["choices"])
    if about["form"]:
        return checked(lambda text: recipe({item.name: text}), "FORM")
    make = whole if plain is int else number
    return make(about["low"], about["high"])


def _option(item: Field[Any]) -> Any:
    about = item.metadata
    (plain,) = types_of(item.name)
    if plain is bool:
        return Annotated[bool | None, flag(about["help"], panel=about["panel"])]
    text = about["help"]
    if about["choices"]:
        text += f": {', '.join(about['choices'])}."
    default = None if item.default is None else str(item.default)
    return Annotated[
        plain | None, option(_value(item, plain), text, panel=about["panel"], shown=default)
    ]


if TYPE_CHECKING:
    from tpcli.cli.groups import DataGroup
    from tpcli.finetune import TrainingData
    from tpcli.models import LoadedModel

    RecipeGroup = Given
else:
    RecipeGroup = make_dataclass(
        "RecipeGroup",
        [(item.name, _option(item), None) for item in fields(Recipe)],
        bases=(Given,),
        frozen=True,
    )


@dataclass(frozen=True)
class FinetuneGroup:
    """Whether and how every point is fine-tuned."""

    finetune_epochs: Annotated[
        int,
        option(
            whole(0, 100_000),
            "Fine-tune every point for so many epochs, and draw both curves.",
            panel=FINETUNE_PANEL,
        ),
    ] = 0
    finetune_config: Annotated[
        Path | None,
        option(
            FILE,
            "TOML file of the recipe's options, as of tpcli finetune.",
            panel=FINETUNE_PANEL,
        ),
    ] = None
    train_split: Annotated[
        str, option(SPLIT, "Split to train on, and of knn's bank.", panel=FINETUNE_PANEL)
    ] = "train"

    @property
    def recipe(self) -> Recipe | None:
        """The recipe, where there are epochs.

        Raises:
            UserError: a file without epochs, or a key that is no part of a recipe.
        """
        if not self.finetune_epochs:
            if self.finetune_config is not None:
                raise UserError("--finetune-config has no effect alone; add --finetune-epochs.")
            return None
        return recipe_of_file(self.finetune_config, epochs=self.finetune_epochs)


def read_toml(option: str, path: Path) -> dict[str, Any]:
    """The keys of a TOML file.

    Raises:
        UserError: no such file, or no TOML.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
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
    from tpcli.data import Head
    from tpcli.finetune import match_data, open_data

    data = open_data(
        source.data or DEMO,
        loaded.data_config,
        recipe,
        train_split=train_split,
        split=source.split,
        data_dir=None if source.data_dir is None else str(source.data_dir),
        download=source.download,
        limit=source.limit,
        class_map=source.read_class_map(),
    )
    return match_data(data, Head.of(loaded.model, loaded.name))


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Let the keys of a TOML file be the defaults of the command's options.

    Raises:
        UserError: no such file, no TOML, or a key that is no option; names it.
    """
    if path is None:
        return None
    options: dict[str, Any] = {
        str(p.name): p for p in context.command.params if str(p.name) not in NOT_IN_FILES
    }
    names = [name.replace("_", "-") for name in options]
    defaults: dict[str, Any] = {}
    for key, value in read_toml("--config", path).items():
        name = key.replace("-", "_")
        if name not in options:
            raise UserError(
                f"--config {path} has the key {key!r}, which is no option of this command."
                f"{did_you_mean(key, names)}"
            )
        if isinstance(value, dict):
            raise UserError(f"--config {path}: {key} is a table; give options as plain keys.")
        is_flag = getattr(options[name], "is_flag", False)
        is_list = getattr(options[name], "multiple", False)
        wanted = ""
        if is_flag != isinstance(value, bool):
            wanted = "true or false" if is_flag else "a value of its kind"
        elif is_list != isinstance(value, list):
            wanted = "a list" if is_list else "one value"
        elif not is_flag and getattr(options[name], "metavar", None) not in NUMBERS:
            items = value if is_list else [value]
            wanted = "" if all(isinstance(item, str) for item in items) else "text in quotes"
        if wanted:
            raise UserError(f"--config {path}: {key} = {value!r} can't be used; give {wanted}.")
        defaults[name] = value
    context.default_map = defaults
    return path
