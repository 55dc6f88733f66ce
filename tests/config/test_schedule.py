"""Schedules: every written form, every mistake, files, and the budget solver."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests.helpers.models import tiny_vit
from tpcli import count_flops, pool
from tpcli.config.options import pooling_options
from tpcli.config.outputs import SCHEDULE_FORMAT
from tpcli.config.schedule import Budget, Schedule, constant_removal, parse, parse_budget
from tpcli.errors import UserError
from tpcli.schedules.budget import BudgetSolver, constant_chain, family_chain, solve_budget
from tpcli.surgery import pooling_spec, unpool

N, DEPTH = 64, 4


def document(tokens: str | None) -> str:
    """The text of a schedule file with such `tokens`."""
    return (
        json.dumps({"format": SCHEDULE_FORMAT})
        if tokens is None
        else (f'{{"format": "{SCHEDULE_FORMAT}", "tokens": {tokens}}}')
    )


@pytest.mark.parametrize(
    ("spec", "tokens"),
    [
        ("none", (64, 64, 64, 64)),
        ("r:0", (64, 64, 64, 64)),
        ("r:13", (51, 38, 25, 13)),  # the last block may not lose more than half
        ("r:10", (54, 44, 34, 24)),
        ("r:2.5", (62, 59, 57, 54)),  # 10 in all
        ("r:12-0", (52, 44, 40, 40)),
        ("r:0-12", (64, 60, 52, 40)),
        ("r:9-9", (55, 46, 37, 28)),
        ("keep:0.7@1", (64, 44, 44, 44)),
        ("keep:0.7@1,2", (64, 44, 30, 30)),
        ("keep:0.7@2,1", (64, 44, 30, 30)),
        ("keep:0.5@0,1,2,3", (32, 16, 8, 4)),
        ("keep:1@0,3", (64, 64, 64, 64)),
        ("keep:0.75@3", (64, 64, 64, 48)),
        ("tokens:64,32,32,1", (64, 32, 32, 1)),
        ("tokens:60, 50, 40, 30", (60, 50, 40, 30)),
    ],
)
def test_forms(spec: str, tokens: tuple[int, ...]) -> None:
    schedule = parse(spec, N, DEPTH)
    assert schedule.tokens == tokens
    assert schedule.name == spec
    assert schedule.patch_tokens == N
    assert schedule.pools == (tokens[-1] < N)


def test_flops_form_asks_the_solver() -> None:
    asked: list[Budget] = []

    def solve(budget: Budget) -> tuple[int, ...]:
        asked.append(budget)
        return (50, 40, 30, 20)

    for spec in ("flops:0.58", "flops:0.6/constant", "flops:0.6@1,3"):
        schedule = parse(spec, N, DEPTH, solve)
        assert (schedule.tokens, schedule.name) == ((50, 40, 30, 20), spec)
    assert asked == [Budget(0.58), Budget(0.6, is_constant=True), Budget(0.6, blocks=(1, 3))]
    with pytest.raises(UserError, match=r"'flops:0\.58' needs a model"):
        parse("flops:0.58", N, DEPTH)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "schedule '' is unknown; use flops:0.58, flops:0.58/constant, "),
        ("half", "schedule 'half' is unknown; use flops:"),
        ("keep", "schedule 'keep' is unknown"),
        ("tokens:", "schedule 'tokens:' is unknown"),
        ("R:13", "schedule 'R:13' is unknown"),
        ("tokens:64,65,32,16", "grows from 64 to 65 tokens at block 1"),
        ("tokens:65,32,32,16", "grows from 64 to 65 tokens at block 0"),
        ("tokens:32,16,17,8", "grows from 16 to 17 tokens at block 2"),
        ("tokens:32,16,8,0", "leaves 0 tokens after block 3; every block needs at least 1"),
        ("tokens:32,-4,8,2", "leaves -4 tokens after block 1"),
        ("tokens:32,16,8", "too short: it has 3 numbers, the model has 4 blocks"),
        ("tokens:32,16,8,4,2", "too long: it has 5 numbers, the model has 4 blocks"),
        ("tokens:32,many,8,4", "'many' in schedule .* is not a whole number; block 1 needs one"),
        ("tokens:32,16.5,8,4", "'16.5' in schedule .* is not a whole number; block 1 needs one"),
        ("tokens:32,,8,4", "'' in schedule .* is not a whole number; block 1 needs one"),
        ("r:many", "'many' in schedule 'r:many' is not a number; the number removed must be one"),
        ("r:nan", "'nan' in schedule 'r:nan' is not a number"),
        ("r:inf", "'inf' in schedule 'r:inf' is not a number"),
        ("r:5-x", "'x' in schedule 'r:5-x' is not a number; the number removed at the end"),
        ("r:-3", "'r:-3' is negative, so tokens would grow; remove 0 or more"),
        ("r:33", "removes more than half of the 64 tokens at one block.*use at most 32"),
        ("r:0-33", "removes more than half of the 64 tokens.*use at most 32"),
        ("keep:0.7", "'keep:0.7' names no blocks; write it like keep:0.7@3,6,9"),
        ("keep:0.7@", "'' in schedule 'keep:0.7@' is not a whole number; a block needs one"),
        ("keep:0.7@x", "'x' in schedule 'keep:0.7@x' is not a whole number; a block needs one"),
        ("keep:0.7@4", "names block 4; the model has blocks 0 to 3"),
        ("keep:0.7@-1", "names block -1; the model has blocks 0 to 3"),
        ("keep:0@1", r"has a keep rate of 0; use one in \(0, 1\]"),
        ("keep:1.2@1", r"has a keep rate of 1.2; use one in \(0, 1\]"),
        ("keep:x@1", "'x' in schedule 'keep:x@1' is not a number; the keep rate"),
        ("keep:0.01@0", "leaves 0 tokens after block 0"),
        ("flops:0", r"budget 0 is out of range; use a share of the FLOPs in \(0, 1\]"),
        ("flops:1.01", r"budget 1.01 is out of range"),
        ("flops:-0.5", r"budget -0.5 is out of range"),
        ("flops:58%", "'58%' in schedule 'flops:58%' is not a number; the budget must be one"),
        ("flops:nan", "'nan' in schedule 'flops:nan' is not a number"),
        ("flops:0.6/even", "'0.6/even' in schedule .* is not a number; the budget must be one"),
        ("flops:2/constant", "budget 2 is out of range"),
        ("flops:0.6@", "'' in schedule 'flops:0.6@' is not a whole number; a block needs one"),
        ("flops:0.6@4", "names block 4; the model has blocks 0 to 3"),
        ("flops:0.6/constant@1", "constant removal and for some blocks only; use one"),
    ],
)
def test_mistakes_are_named(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(spec, N, DEPTH, lambda budget: (32, 16, 8, 4))


def test_a_negative_end_of_removal_is_refused() -> None:
    with pytest.raises(UserError, match="'r:3--3'"):
        parse("r:3--3", N, DEPTH)


def test_budgets() -> None:
    assert parse_budget("1") == 1.0
    assert parse_budget("0.05") == 0.05
    with pytest.raises(UserError, match="'a lot' is not a number; the budget must be one"):
        parse_budget("a lot")


@pytest.mark.parametrize("total", [0, 1, 7, 48, 60, 100, 128])
def test_constant_removal_is_even_and_leaves_half(total: int) -> None:
    tokens = constant_removal(N, DEPTH, total)
    cuts = [a - b for a, b in pairwise((N, *tokens))]
    assert all(cut <= before // 2 for cut, before in zip(cuts, (N, *tokens), strict=False))
    if total <= 48:
        assert sum(cuts) == total
        assert max(cuts) - min(cuts) <= 1


def test_tokens_in_and_the_equivalent_spec() -> None:
    schedule = parse("r:10", N, DEPTH)
    assert [schedule.tokens_in(i) for i in range(DEPTH)] == [64, 54, 44, 34]
    assert schedule.tokens_spec == "tokens:54,44,34,24"
    assert parse(schedule.tokens_spec, N, DEPTH).tokens == schedule.tokens
    assert parse("none", N, DEPTH).tokens_spec == "none"


def test_file_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    method, made_by = {"method": "ward", "iterations": 4}, {"budget": 0.58}
    Schedule((50, 40, 30, 20), N, "r:x", method, made_by).save(file)
    assert json.loads(file.read_text()) == {
        "format": "tpcli-schedule/1",
        "tokens": [50, 40, 30, 20],
        "method": method,
        "made_by": made_by,
    }
    loaded = parse(str(file), N, DEPTH)
    assert loaded.tokens == (50, 40, 30, 20)
    assert (loaded.options, loaded.made_by) == (method, made_by)
    with pytest.raises(UserError, match="exists already"):
        loaded.save(file)


def test_the_method_of_a_file_is_used_unless_another_is_given(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    Schedule((50, 40, 30, 20), N, options={"method": "ward", "iterations": 4}).save(file)
    model = tiny_vit()
    spec = pooling_spec(pool(model, str(file)))
    assert spec is not None
    assert (spec.options.method, spec.options.iterations) == ("ward", 4)
    spec = pooling_spec(pool(model, str(file), "k-means"))
    assert spec is not None
    assert (spec.options.method, spec.options.iterations) == ("k-means", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[50, 40, 30, 20]", 'is no schedule file; it needs "format": "tpcli-schedule/1"'),
        ('{"tokens": [50, 40, 30, 20]}', "is no schedule file"),
        ('{"format": "tpcli-schedule/2", "tokens": [5, 4, 3, 2]}', "is no schedule file"),
        ("not json", "is not a readable JSON file"),
        (document(None), 'has no list "tokens"'),
        (document("5"), 'has no list "tokens"'),
        (document("[5, 4]"), "too short: it has 2 numbers"),
        (document("[5, 4, 3, 2, 1]"), "too long: it has 5 numbers"),
        (document("[50, 51, 3, 2]"), "grows from 50 to 51 .* block 1"),
        (document("[50, 40, 0, 0]"), "leaves 0 tokens after block 2"),
        (document('[50, "x", 3, 2]'), "not a whole number; block 1"),
        (document("[50, 4.5, 3, 2]"), "not a whole number; block 1"),
        (document("[50, null, 3, 2]"), "not a whole number; block 1"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        parse(str(file), N, DEPTH)
    assert "bad.json" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json does not exist; check the path"):
        parse(str(tmp_path / "none.json"), N, DEPTH)


@pytest.mark.long
def test_solver_comes_closest_without_exceeding() -> None:
    """The next weaker cut costs more than the budget, by the count itself."""
    options = pooling_options("k-means", position="attention")
    model = tiny_vit(embed_dim=96)
    solver = BudgetSolver(model, options)
    cost = solver.cost
    for budget in (
        Budget(0.85),
        Budget(0.6),
        Budget(0.85, is_constant=True),
        Budget(0.8, blocks=(0, 2)),
    ):
        tokens = solver.solve(budget)
        chain = constant_chain(cost)
        if not budget.is_constant:
            chain = family_chain(cost, budget.blocks)
        pool(model, list(tokens), options)
        flops = count_flops(model).total
        assert flops == round(cost.exact(tokens) * cost.base_flops)
        assert flops <= budget.share * cost.base_flops
        assert cost.exact(chain[chain.index(tokens) - 1]) > budget.share
    unpool(model)
    assert count_flops(model).total == cost.base_flops


def test_the_whole_budget_removes_nothing() -> None:
    assert solve_budget(tiny_vit(), pooling_options(), 1.0) == (64, 64, 64, 64)


def test_an_unreachable_budget_says_what_can_be_reached() -> None:
    model = tiny_vit()
    with pytest.raises(UserError, match=r"budget 0\.05 can't be reached.* k-means .* is 0\.\d+"):
        pool(model, "flops:0.05", "k-means")
    solver = BudgetSolver(model, pooling_options("k-means"))
    with pytest.raises(UserError, match=f"is {solver.cost.exact((1,) * DEPTH):.3f}"):
        solver.solve(0.05)
