"""Options made from the fields of `PoolingOptions`, and what they do to a model."""

from __future__ import annotations

from dataclasses import dataclass, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

from tpcli.config import specs
from tpcli.config.choices import DEFAULT_SCHEDULE
from tpcli.config.methods import METHODS
from tpcli.config.options import PoolingOptions, options_from_dict, pooling_options
from tpcli.config.schedule import file_options
from tpcli.errors import UserError

from .values import METHOD, SCHEDULE, flag, one_of, option, whole

if TYPE_CHECKING:
    from tpcli.models.load import LoadedModel
    from tpcli.surgery import PoolingSpec

POOLING_PANEL = "Pooling"
METHOD_HELP = f"Pooling method: {', '.join(METHODS)} (tpcli methods tells more)."
METHODS_HELP = f"Methods, repeated or with commas between: {', '.join(METHODS)}."
SCHEDULE_HELP = "flops:0.6, r:13, r:13-0, keep:0.7@3,6,9, tokens:..., FILE.json, none."


class Given:
    """How tokens are pooled, apart from the method's name and the schedule."""

    @property
    def given(self) -> dict[str, Any]:
        """What the user typed; the rest takes the method's defaults."""
        values = {item.name: getattr(self, item.name) for item in fields(PoolingOptions)[1:]}
        return {name: value for name, value in values.items() if value is not None}

    def options(self, method: str | None) -> PoolingOptions:
        """Complete options for `method`."""
        return pooling_options(method, **self.given)


def _pooling_option(name: str, kind: Any, about: Any) -> Any:
    (plain,) = [t for t in get_args(kind) or (kind,) if t is not type(None)]
    if plain is bool:
        switch = name.replace("_", "-")
        chosen = flag(about["help"], f"--{switch}/--no-{switch}", panel=POOLING_PANEL)
    elif about["choices"]:
        text = f"{about['help']}: {', '.join(about['choices'])}."
        chosen = option(one_of(about["choices"]), text, panel=POOLING_PANEL)
    else:
        chosen = option(whole(about["low"], about["high"]), about["help"], panel=POOLING_PANEL)
    return Annotated[plain | None, chosen]


if TYPE_CHECKING:
    MethodGroup = Given
else:
    _kinds = get_type_hints(PoolingOptions)
    MethodGroup = make_dataclass(
        "MethodGroup",
        [
            (item.name, _pooling_option(item.name, _kinds[item.name], item.metadata), None)
            for item in fields(PoolingOptions)[1:]
        ],
        bases=(Given,),
        frozen=True,
    )


@dataclass(frozen=True)
class PoolingGroup(MethodGroup):
    """How, and how much."""

    schedule: Annotated[str | None, option(SCHEDULE, SCHEDULE_HELP, panel=POOLING_PANEL)] = None
    method: Annotated[str | None, option(METHOD, METHOD_HELP, panel=POOLING_PANEL)] = None

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
        """Pool the model as asked; leave it as it was loaded where nothing was asked.

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
