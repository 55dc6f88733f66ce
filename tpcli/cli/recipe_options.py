"""Options made from the fields of `Recipe`."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tpcli.config.recipe import Recipe, recipe, types_of
from tpcli.config.specs import DEMO
from tpcli.errors import UserError, did_you_mean

from .settings import read_toml
from .values import FILE, SPLIT, Value, checked, flag, number, one_of, option, whole


class Given:
    """What the user asked for; None is what was left out."""

    @property
    def recipe(self) -> Recipe:
        """The recipe: what was given, the rest default."""
        return recipe({item.name: getattr(self, item.name) for item in fields(Recipe)})


FINETUNE_PANEL = "Fine-tuning"


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
    from tpcli.finetune import TrainingData
    from tpcli.models.load import LoadedModel

    from .groups import DataGroup

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


def recipe_of_file(path: Path | None, *, epochs: int) -> Recipe:
    """A recipe from a TOML file of its options, for so many epochs.

    Raises:
        UserError: the file can't be read, or has a key that is none of a recipe's.
    """
    values: dict[str, Any] = {} if path is None else read_toml(f"--finetune-config {path}", path)
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
    from tpcli.finetune import give_head, match_data, open_data

    data = open_data(
        source.data or DEMO,
        loaded.data_config,
        recipe,
        train_split=train_split,
        split=source.split,
        **source.arguments(),
        limit=source.limit,
        class_map=source.read_class_map(),
    )
    if recipe.freeze:
        give_head(loaded, data, recipe.seed)
    return match_data(data, Head.of(loaded.model, loaded.name), recipe)
