"""Options made from the fields of `PoolingOptions` and `Recipe`, and what they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

from tpcli.config import specs
from tpcli.config.choices import DEFAULT_SCHEDULE
from tpcli.config.methods import METHODS
from tpcli.config.options import PoolingOptions, options_from_dict, pooling_options
from tpcli.config.recipe import Recipe, recipe, types_of
from tpcli.config.schedule import file_options
from tpcli.errors import UserError, did_you_mean

from .settings import check_spelled_once, plain, read_toml
from .values import (
    FILE,
    METHOD,
    SCHEDULE,
    SOME_METHODS,
    SPLIT,
    Value,
    checked,
    choice,
    flag,
    number,
    option,
    whole,
)

if TYPE_CHECKING:
    from tpcli.finetune import TrainingData
    from tpcli.models.load import LoadedModel
    from tpcli.surgery import PoolingSpec

    from .groups import DataGroup

POOLING_PANEL = "Pooling"
METHOD_HELP = f"Pooling method: {', '.join(METHODS)} (described by: tpcli methods)."
METHODS_HELP = f"Pooling methods, separated by commas or repeated: {', '.join(METHODS)}."
SCHEDULE_HELP = (
    "Tokens kept by block: flops:0.6 (share of the FLOPs), r:13 or r:13-0 (removed per block), "
    "keep:0.7@3,6,9 (share kept at these blocks), tokens:..., FILE.json, none."
)


def some_methods(text: str = "", shown: Sequence[str] = ()) -> Any:
    """The option of several methods. text: what they are for."""
    return option(
        SOME_METHODS,
        f"{text} {METHODS_HELP}".lstrip(),
        panel=POOLING_PANEL,
        shown=",".join(shown) or None,
    )


class PoolingValues:
    """Pooling options apart from the method and the schedule."""

    PANEL = POOLING_PANEL

    @property
    def given(self) -> dict[str, Any]:
        """What the user gave; the rest takes the method's defaults."""
        values = {item.name: getattr(self, item.name) for item in fields(PoolingOptions)[1:]}
        return {name: value for name, value in values.items() if value is not None}

    def options(self, method: str | None) -> PoolingOptions:
        """Complete options for `method`."""
        return pooling_options(method, **self.given)


def _pooling_option(name: str, kind: Any, about: Any) -> Any:
    (type_,) = [t for t in get_args(kind) or (kind,) if t is not type(None)]
    if type_ is bool:
        switch = name.replace("_", "-")
        chosen = flag(about["help"], f"--{switch}/--no-{switch}")
    elif about["choices"]:
        chosen = choice(about["choices"], about["help"])
    else:
        chosen = option(whole(about["low"], about["high"]), about["help"])
    return Annotated[type_ | None, chosen]


if TYPE_CHECKING:
    MethodGroup = PoolingValues
else:
    _kinds = get_type_hints(PoolingOptions)
    MethodGroup = make_dataclass(
        "MethodGroup",
        [
            (item.name, _pooling_option(item.name, _kinds[item.name], item.metadata), None)
            for item in fields(PoolingOptions)[1:]
        ],
        bases=(PoolingValues,),
        frozen=True,
    )


@dataclass(frozen=True)
class PoolingGroup(MethodGroup):
    """How tokens are pooled, and how many."""

    schedule: Annotated[str | None, option(SCHEDULE, SCHEDULE_HELP)] = None
    method: Annotated[str | None, option(METHOD, METHOD_HELP)] = None

    def check(self, model: str) -> None:
        """Fail before `model` is loaded where these options can't go together on it."""
        of_file = file_options(self.schedule)
        if self.method is None and of_file:
            try:
                options_from_dict(of_file, **self.given)
            except UserError as error:
                raise UserError(f"{self.schedule}: {error}") from None
        elif self.method is not None or specs.is_plain(model):
            self.options(self.method)

    def apply_to(self, loaded: LoadedModel, default_schedule: str | None = None) -> None:
        """Pool the model by the options given; leave it as loaded where there are none.

        Options given for a model that is pooled already replace its own, one by one; so does the
        method of a schedule file.
        """
        from tpcli.schedules.resolve import pool
        from tpcli.surgery import pooling_spec

        own = pooling_spec(loaded.model)
        if own is None:
            asked = self.method is not None or bool(self.given)
            schedule = self.schedule or (DEFAULT_SCHEDULE if asked else default_schedule)
            if schedule is not None:
                pool(loaded.model, schedule, self.method, **self.given)
        elif self.schedule is not None or self.method is not None or self.given:
            if self.method is None and not file_options(self.schedule):
                options = options_from_dict(own.options.to_dict(), **self.given)
                pool(loaded.model, self.schedule or own.schedule, options)
            else:
                pool(loaded.model, self.schedule or own.schedule, self.method, **self.given)

    def spec_on(
        self, loaded: LoadedModel, own: PoolingSpec | None, default_schedule: str
    ) -> PoolingSpec:
        """What `apply_to` makes of the model where it is pooled as `own` says."""
        from tpcli.surgery import insert, pooling_spec, unpool

        unpool(loaded.model)
        if own is not None:
            insert(loaded.model, own)
        self.apply_to(loaded, default_schedule)
        spec = pooling_spec(loaded.model)
        assert spec is not None
        return spec


def method_names(items: list[str] | None) -> list[str]:
    """Names from `--method`, repeated or separated by commas, each once."""
    return list(dict.fromkeys(name.strip(" ") for item in items or [] for name in item.split(",")))


class RecipeValues:
    """What the user gave; None is what was left out."""

    @property
    def recipe(self) -> Recipe:
        """The recipe, with defaults for what was left out."""
        return recipe({item.name: getattr(self, item.name) for item in fields(Recipe)})


def _recipe_value(item: Field[Any], type_: type) -> Value:
    """What the field accepts."""
    about = item.metadata
    if about["form"]:
        return checked(lambda text: recipe({item.name: text}), "FORM")
    make = whole if type_ is int else number
    return make(about["low"], about["high"])


def _recipe_option(item: Field[Any]) -> Any:
    about = item.metadata
    (type_,) = types_of(item.name)
    if type_ is bool:
        return Annotated[bool | None, flag(about["help"], panel=about["panel"])]
    default = None if item.default is None else str(item.default)
    more = {"panel": about["panel"], "shown": default}
    if about["choices"]:
        return Annotated[type_ | None, choice(about["choices"], about["help"], **more)]
    return Annotated[type_ | None, option(_recipe_value(item, type_), about["help"], **more)]


if TYPE_CHECKING:
    RecipeGroup = RecipeValues
else:
    RecipeGroup = make_dataclass(
        "RecipeGroup",
        [(item.name, _recipe_option(item), None) for item in fields(Recipe)],
        bases=(RecipeValues,),
        frozen=True,
    )


@dataclass(frozen=True)
class FinetuneGroup:
    """Whether and how every point is fine-tuned."""

    PANEL = "Fine-tuning"

    finetune_epochs: Annotated[
        int,
        option(
            whole(0, 100_000),
            "Fine-tune every point for N epochs, and draw the curve before and after.",
        ),
    ] = 0
    finetune_config: Annotated[
        Path | None, option(FILE, "TOML file with options of tpcli finetune.")
    ] = None
    train_split: Annotated[str, option(SPLIT, "Split to train on, and that knn searches.")] = (
        "train"
    )

    @property
    def recipe(self) -> Recipe | None:
        """The recipe, where there are epochs.

        Raises:
            UserError: a file without epochs, or a key that is not an option of recipes.
        """
        if not self.finetune_epochs:
            if self.finetune_config is not None:
                raise UserError("--finetune-config has no effect alone; add --finetune-epochs.")
            return None
        values: dict[str, Any] = {}
        if self.finetune_config is not None:
            where = f"--finetune-config {self.finetune_config}"
            known = {plain(item.name) for item in fields(Recipe)} - {"epochs"}
            values = read_toml(where, self.finetune_config)
            check_spelled_once(where, values)
            for key in values:
                if plain(key) not in known:
                    raise UserError(
                        f"{where} has the key {key!r}, which is not an option of tpcli finetune."
                        f"{did_you_mean(key, known)}"
                    )
        given = {key.replace("-", "_"): value for key, value in values.items()}
        return recipe({**given, "epochs": self.finetune_epochs})


def open_training(
    source: DataGroup, loaded: LoadedModel, recipe: Recipe, train_split: str
) -> TrainingData:
    """The images to train on and those to measure on."""
    from tpcli.data import Head
    from tpcli.finetune import give_head, match_data, open_data

    data = open_data(
        source.data or specs.DEMO,
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
