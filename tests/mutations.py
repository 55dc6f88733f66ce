"""Faults put in one at a time: the tests must notice each. `python -m tests.mutations [NAME ...]`.

Each fault replaces one text in a copy of the package and runs only the tests that should fail. A
text that is no longer there, or tests that fail without the fault too, are told apart from a miss.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutation:
    """`old`, which stands once in `file` of tpcli, becomes `new`; then `tests` should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation(
        "a sign in Ward's cost",
        "pooling/merge_cost.py",
        "div_(inverse + inverse.transpose(1, 2))",
        "div_(inverse - inverse.transpose(1, 2))",
        "pooling/test_ward.py::test_one_merge_a_round_is_exact_ward",
    ),
    Mutation(
        "a tie rule",
        "pooling/order.py",
        "position.masked_fill(values > least, n).amin(-1)",
        "position.masked_fill(values > least, -1).amax(-1)",
        "pooling/test_ties.py::test_order_is_by_value_then_position",
    ),
    Mutation(
        "a missing size in a head",
        "surgery/head.py",
        "mean = _mean(tokens, sizes)",
        "mean = _mean(tokens, torch.ones_like(sizes))",
        "surgery/test_sizes.py::test_a_token_counts_as_often_as_its_size",
    ),
    Mutation(
        "a wrong FLOPs handle",
        "flops.py",
        "key[-2] * (query[-1] + value[-1])",
        "key[-2] * query[-1]",
        "test_flops.py::test_closed_form_of_a_plain_vit",
    ),
    Mutation(
        "a cache key",
        "pareto/subjects.py",
        '"strict": subject.options.strict,',
        '"strict": None,',
        "pareto/test_cache.py::test_key_depends_on_every_determinant",
    ),
    Mutation(
        "a lock",
        "locks.py",
        "yield _holder(path)",
        "yield None",
        "pareto/test_cache.py::test_claim_is_exclusive_and_dies_with_its_process",
    ),
    Mutation(
        "a resume step",
        "finetune/batches.py",
        "for step in range(self.first_step, self.steps):",
        "for step in range(self.steps):",
        "finetune/test_data.py::test_batches_from_a_step_on_are_the_rest_of_the_epoch",
    ),
    Mutation(
        "a Wilson bound",
        "evaluation.py",
        'method="wilson"',
        'method="exact"',
        "test_evaluation.py::test_wilson_interval",
    ),
    Mutation(
        "a schedule rounding",
        "schedule_forms.py",
        "math.floor(left * rate + 1e-9)",
        "math.ceil(left * rate - 1e-9)",
        "test_schedule.py::test_forms",
    ),
    Mutation(
        "an escape",
        "report/pages.py",
        'autoescape=select_autoescape(["html"])',
        "autoescape=False",
        "pareto/test_report.py::test_html_stands_alone_and_escapes",
    ),
)


def outcome(mutation: Mutation, package: Path) -> str:
    """What comes of one mutation of the copy in `package`: "caught", or what went wrong."""
    file = package / "tpcli" / mutation.file
    text = file.read_text() if file.is_file() else ""
    if text.count(mutation.old) != 1:
        return f"{mutation.old!r} stands {text.count(mutation.old)} times in {mutation.file}"
    file.write_text(text.replace(mutation.old, mutation.new))
    try:
        return {0: "missed", 1: "caught"}.get(code(package, mutation.tests), "tests did not run")
    finally:
        file.write_text(text)


def code(package: Path, *tests: str) -> int:
    """pytest's exit code: 0 all passed, 1 a test failed, others where they could not be run."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
        + [str(package / "tests" / test) for test in tests],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).returncode


def main(names: list[str]) -> int:
    """Try the mutations that are named, or all; 0 where each is caught."""
    chosen = [m for m in MUTATIONS if not names or any(name in m.name for name in names)]
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        for part in ("tpcli", "tests"):
            shutil.copytree(
                ROOT / part, package / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy(ROOT / "pyproject.toml", package)
        tests = sorted({mutation.tests for mutation in chosen})
        if code(package, *tests):
            print(f"{', '.join(tests)}: not all pass without a mutation")
            return 1
        results = []
        for mutation in chosen:
            results.append(outcome(mutation, package))
            print(f"{mutation.name}: {results[-1]}", flush=True)
    return int(any(result != "caught" for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
