"""Recipes: what is accepted, and the way through TOML files and options."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tpcli.cli.field_options import RecipeGroup
from tpcli.cli.main import main
from tpcli.cli.option_groups import spread
from tpcli.cli.settings import take_config
from tpcli.config.recipe import BASE_LR, IMAGES_OF_LR, OPTIMIZERS, SHORT, STRONG, Recipe, recipe
from tpcli.errors import UserError
from tpcli.finetune.folder import to_toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_learning_rate_scales_with_the_batch() -> None:
    assert Recipe(batch_size=IMAGES_OF_LR).peak_lr == BASE_LR
    assert Recipe(batch_size=64).peak_lr == BASE_LR * 64 / IMAGES_OF_LR
    assert Recipe(batch_size=64, lr=0.1).peak_lr == 0.1


def test_short_runs_are_augmented_mildly_unless_told_otherwise() -> None:
    long, short = Recipe(epochs=SHORT), Recipe(epochs=SHORT - 1)
    assert (long.mixes, short.mixes) == (True, False)
    assert (short.aa, short.erasing) == ("none", 0.0)
    assert (long.aa, long.erasing) == (STRONG["aa"], STRONG["erasing"])
    assert Recipe(epochs=1, mix_prob=0.3, aa="rand-m9", erasing=0.2).to_dict().items() >= {
        ("mix_prob", 0.3), ("aa", "rand-m9"), ("erasing", 0.2)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("epochs", 0, "1 to 100000"),
        ("epochs", 2.5, "int"),
        ("epochs", True, "int"),
        ("lr", "fast", "float"),
        ("mixup", -0.1, "0 to 1000"),
        ("lr", float("inf"), "out of range"),
        ("lr", float("nan"), "out of range"),
        ("drop_path", 1, "0 to 0.99"),
        ("seed", 10**22, "out of range"),
        ("opt", "adamww", "Did you mean adamw"),
        ("sched", "plateau", "use one of constant, cosine"),
        ("aa", "rand-mx", "rand-mx"),
        ("warmup_epochs", 11, "more than the 10 epochs"),
        ("smoothing", 1.5, "0 to 0.99"),
        ("precision", "bf61", "bf16, fp16, fp32"),
        ("tracker", "wandbb", "Did you mean wandb"),
        ("distill", "yes", "bool"),
    ],
)
def test_values_out_of_range(name: str, value: object, told: str) -> None:
    with pytest.raises(UserError, match=f"^{name} .*{told}"):
        recipe({name: value})


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r"no 'epoch'\. Did you mean epochs"):
        recipe({"epoch": 3})


def test_whole_numbers_pass_for_real_ones() -> None:
    assert recipe({"mixup": 0, "lr": 1}).mixup == 0


def test_toml_round_trip() -> None:
    values = {
        **Recipe(lr=1e-7).to_dict(),
        "model": 'a"b\\c',
        "model_kwargs": ["a=1", "b=x"],
        "none": None,
    }
    read = tomllib.loads(to_toml(values))
    assert read["model-kwargs"] == ["a=1", "b=x"]
    assert "none" not in read
    back = {k.replace("-", "_"): v for k, v in read.items() if k != "model-kwargs"}
    assert back.pop("model") == 'a"b\\c'
    assert recipe(back) == Recipe(lr=1e-7)


def test_what_a_resumed_run_may_change() -> None:
    fixed = Recipe().fixed()
    assert not {"workers", "save_minutes", "tracker", "eval_batch_size"} & fixed.keys()
    assert {"lr", "epochs", "batch_size", "seed", "distill"} <= fixed.keys()


@pytest.fixture
def parsed() -> tuple[typer.Typer, list[Recipe]]:
    """A command with nothing but a recipe, and the recipes that it was called with."""
    app, seen = typer.Typer(), []

    def train(
        *, training: RecipeGroup, config: Path | None = CONFIG, as_json: bool = False
    ) -> None:
        seen.append(training.recipe)

    app.command()(spread(train))
    return app, seen


CONFIG = typer.Option(None, callback=take_config, is_eager=True)


def test_every_field_is_an_option_and_a_key(
    parsed: tuple[typer.Typer, list[Recipe]], tmp_path: Path
) -> None:
    app, seen = parsed
    help_text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    for item in fields(Recipe):
        assert f"--{item.name.replace('_', '-')}" in help_text
    file = tmp_path / "all.toml"
    wanted = Recipe(epochs=3, lr=0.25, distill=False, hflip=0.0, tracker="wandb")
    file.write_text(to_toml(wanted.to_dict()))
    CliRunner().invoke(app, ["--config", str(file)], catch_exceptions=False)
    assert seen == [wanted]


def test_options_win_over_the_file(
    parsed: tuple[typer.Typer, list[Recipe]], tmp_path: Path
) -> None:
    app, seen = parsed
    file = tmp_path / "some.toml"
    file.write_text("epochs = 7\nbatch_size = 32\ndistill = false\n")
    arguments = ["--epochs", "3", "--config", str(file), "--distill"]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert (seen[0].epochs, seen[0].batch_size, seen[0].distill) == (3, 32, True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epoch = 3", "'epoch', which is no option of this command. Did you mean epochs"),
        ("as-json = true", "'as-json'"),
        ("epochs = 2.5", "epochs '2.5' is no whole number"),
        ("epochs = true", "epochs = True can't be used; give a value of its kind"),
        ("distill = 1", "distill = 1 can't be used; give true or false"),
        ("opt = ['sgd']", "opt = ['sgd'] can't be used; give one value"),
        ("model-kwargs = 'depth=1'", "give a list"),
        ("model = true", "model = True can't be used"),
        ("[training]\nepochs = 2", "'training'"),
        ("epochs = ", "not a readable TOML file"),
        ("mixup = -1.0", "mixup '-1.0' is out of range"),
    ],
)
def test_bad_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    told: str,
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    monkeypatch.setattr(sys, "argv", ["tpcli", "finetune", "--config", str(file)])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert (stopped.value.code, said.count("\n")) == (2, 1)
    assert f"--config {file}" in said
    assert told in said


def test_names_are_timms() -> None:
    import timm.data
    import timm.optim

    known = set(timm.optim.list_optimizers())
    assert set(OPTIMIZERS) <= known
    assert {name for name in known - set(OPTIMIZERS) if name[:3] not in ("bnb", "fus")} <= {
        "adahessian"
    }
    for form in ("rand-m9-mstd0.5-inc1", "rand-n3-p0.7-tweights", "augmix-m5-w4-d2", "v0r", "3a"):
        assert recipe({"aa": form}).aa == form
        timm.data.create_transform(32, is_training=True, auto_augment=form)
