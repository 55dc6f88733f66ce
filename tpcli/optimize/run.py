"""`optimize`: one schedule for the targets, chosen on half of the images, checked on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tpcli.bench.clock import percent
from tpcli.bench.compare import BenchResult, bench
from tpcli.bench.time_cost import time_cost
from tpcli.config.schedule import Schedule
from tpcli.data import ImageData, chosen_on
from tpcli.errors import UserError
from tpcli.evaluation.choose import MeasuredModel, Task, choose
from tpcli.evaluation.measurer import OnPass
from tpcli.evaluation.run import RunOptions
from tpcli.evaluation.scores import Scores
from tpcli.models.load import LoadedModel, model_identity
from tpcli.schedules.flops_cost import CostModel
from tpcli.search.search import SearchOptions, calibration_images
from tpcli.search.trials import Damage
from tpcli.stats import Each, drop
from tpcli.surgery import PoolingSpec, insert, unpool, unpooled, with_place
from tpcli.surgery.geometry import patch_tokens
from tpcli.system.devices import borrowed, device_name, pick_device
from tpcli.system.resume import Progress, key

from .options import OptimizeOptions, Targets
from .plans import Candidate, Costs, Damaged, Finder, levels, plans
from .race import Runner, holds, race, winner
from .result import Checked, Optimized, missed, nearest
from .split import Halves, packed, unpacked

CORRECTIONS = 3
"""Times that the schedule is cut further where it was measured slower than its forecast."""


def optimize(
    loaded: LoadedModel,
    data: ImageData,
    targets: Targets,
    options: OptimizeOptions,
    *,
    open_bank: Callable[[], ImageData] | None = None,
    progress: Progress | None = None,
    on_pass: OnPass | None = None,
) -> Optimized:
    """Find the fastest schedule that meets the targets, and check it on held-out images.

    Plans of all methods are compared by the change of the model's outputs on a few images of one
    half. The best race on that half. The winner is timed against the unpooled model and measured
    on the other half, once. The model is left as it was.

    Args:
        open_bank: opens the training images: for `knn`, and to choose on where half of `data` is
            too few.
        progress: remembers what was measured.
        on_pass: called with what begins and its number of steps; returns what is called with the
            steps done.

    Raises:
        UserError: model and data don't allow the measure, or there are too few images.
        TpcliError: no schedule reaches the speed-up or budget; says what is reached.
    """
    device = pick_device(options.bench.device)
    with borrowed(loaded.model, device), unpooled(loaded.model):
        search = _Search(loaded, data, targets, options, open_bank, progress or Progress(), on_pass)
        return search.run()


@dataclass
class _Search:
    """One run, from the task to the result."""

    loaded: LoadedModel
    data: ImageData
    targets: Targets
    options: OptimizeOptions
    open_bank: Callable[[], ImageData] | None
    progress: Progress
    on_pass: OnPass | None
    so_far: str = ""
    """Appended to labels of progress bars."""

    def __post_init__(self) -> None:
        options, open_bank = self.options, self.open_bank
        self.model = self.loaded.model
        measured = MeasuredModel(self.model, self.loaded.name, self.data, open_bank)
        self.task = choose(options.measure, [measured], options.bank)[0]
        amp = options.bench.dtype != "float32"
        run = RunOptions(options.batch_size, options.bench.device, amp, options.workers)

        def training() -> Task | None:
            if open_bank is None:
                return None
            try:
                images = replace(measured, data=open_bank())
                return choose(self.task.measure, [images], options.bank)[0]
            except UserError:
                return None

        self.halves = Halves(self.model, self.task, run, self.targets, options.seed, training)
        self.identity: dict[str, Any] = {
            "model": model_identity(self.model),
            "run": [device_name(options.bench.device), options.bench.dtype, options.batch_size],
        }
        self.poolings = [with_place(self.model, pooling) for pooling in options.poolings]
        self.patch_tokens = patch_tokens(self.model)
        self.costs: dict[str, Costs] = {}
        self.compared: set[str] = set()

    def run(self) -> Optimized:
        for pooling in self.poolings:
            advance = self._begin(f"timing {pooling.method}", 100)
            time = time_cost(
                self.model,
                pooling,
                self.options.bench,
                progress=self.progress,
                identity=self.identity["model"],
                on_round=percent(advance),
            )
            self.costs[pooling.method] = Costs(time, CostModel(self.model, pooling))
        depth = len(self.model.blocks)  # type: ignore[arg-type]
        every = [plan for pooling in self.poolings for plan in plans(pooling, depth)]
        wanted = levels(self.targets, self.costs, every)
        self.finder = Finder(every, self.costs, self.targets, self._damaged())
        candidates = self.finder.candidates(wanted)
        self.base = [self._base(part).each for part in range(self.halves.parts)]
        runners = race(candidates, self.base, self._each, self.targets, self._look)
        runners += self._between(runners)
        best = winner(runners, self.targets)
        if best is None:
            return self._result(runners, "no schedule holds the drop for certain")
        best, timed = self._timed(best)
        if not any(runner is best for runner in runners):
            runners.append(best)
        held_out = self.halves.parts
        base = self._base(held_out)
        pooled = self._scores(best.candidate, held_out, "held-out images")
        checked = Checked(base, pooled, drop(base.each, pooled.each))
        reason = missed(self.targets, timed.speedup, checked)
        return self._result(runners, reason, best, timed, checked)

    def _base(self, part: int) -> Scores:
        """Of the unpooled model on a part."""
        return self.halves.measure(self.model, part, self._labelled("unpooled model"))

    def _each(self, candidate: Candidate, part: int) -> Each:
        """The score of each image of a part, measured once."""
        label = f"{candidate.plan.label}, {candidate.speedup:.2f}x{self.so_far}"
        images = self.halves.identity(part)
        name = key("scores", schedule=candidate.key, images=images, **self.identity)
        return unpacked(
            self.progress(name, lambda: packed(self._scores(candidate, part, label).each))
        )

    def _scores(self, candidate: Candidate, part: int, label: str) -> Scores:
        """Measured, whatever is remembered."""
        schedule = Schedule(candidate.tokens, self.patch_tokens)
        insert(self.model, PoolingSpec(schedule, candidate.plan.options))
        try:
            return self.halves.measure(self.model, part, self._labelled(label))
        finally:
            unpool(self.model)

    def _whole(self, candidate: Candidate) -> Runner:
        """A runner that has run over all parts."""
        scores = [self._each(candidate, part) for part in range(self.halves.parts)]
        return Runner(candidate, self.base, scores)

    def _between(self, runners: Sequence[Runner]) -> list[Runner]:
        """Between the winner so far and the next faster one, two more."""
        best = winner(runners, self.targets)
        if best is None or self.targets.max_drop is None:
            return []
        slow = best.candidate
        faster = [r.candidate for r in runners if r.candidate.time < slow.time]
        if not faster:
            return []
        fast = max(faster, key=lambda c: c.time)
        return [self._whole(candidate) for candidate in self.finder.between(slow, fast)]

    @property
    def _compared_on(self) -> int:
        """Images that schedules are compared on before the race."""
        return min(self.options.images, self.halves.images[0])

    def _damaged(self) -> Damaged:
        """Mean damage on the first images of the choice."""
        by = "kl" if int(getattr(self.model, "num_classes", 0)) > 1 else "similarity"
        size = min(64, self.options.batch_size)
        wanted = SearchOptions(images=self._compared_on, batch_size=size)
        device = pick_device(self.options.bench.device)
        images = calibration_images(self.halves.choice, wanted, device)
        damage = Damage(self.model, self.poolings[0], images, by)
        advance = self._begin("comparing plans", 0)
        seen = [self.halves.choice.fingerprint, wanted.images, size]

        def damaged(candidate: Candidate) -> float:
            under = damage.under(candidate.plan.options)
            self.compared.add(candidate.key)
            advance(1)
            name = key("damage", schedule=candidate.key, images=seen, by=by, **self.identity)
            return float(self.progress(name, lambda: under.of(candidate.tokens)))

        return damaged

    def _look(self, runners: Sequence[Runner]) -> None:
        """Keep in words which candidate would be chosen by now."""
        best = winner(runners, self.targets)
        self.so_far = f"; {sum(not runner.out for runner in runners)} in the race"
        if best is not None:
            self.so_far += f", best {best.candidate.speedup:.2f}x ({best.lost.words})"

    def _timed(self, best: Runner) -> tuple[Runner, BenchResult]:
        """The winner timed; cut further where it is slower than the speed that is aimed at."""
        timed = self._bench(best.candidate)
        for _ in range(CORRECTIONS):
            wanted = self.targets.speedup
            if wanted is None or timed.speedup >= wanted:
                break
            level = best.candidate.time * timed.speedup / wanted * 0.995
            stronger = self.finder.best(level)
            if not stronger:
                break
            runner = self._whole(stronger[0])
            if not holds(runner, self.targets):
                break
            best, timed = runner, self._bench(stronger[0])
        return best, timed

    def _bench(self, candidate: Candidate) -> BenchResult:
        schedule = Schedule(candidate.tokens, self.patch_tokens)
        on_round = percent(self._begin(f"timing {candidate.plan.label}", 100))
        return bench(self.model, schedule, candidate.plan.options, self.options.bench, on_round)

    def _result(
        self,
        runners: Sequence[Runner],
        reason: str,
        best: Runner | None = None,
        timed: BenchResult | None = None,
        checked: Checked | None = None,
    ) -> Optimized:
        ratio = None
        if best is not None:
            costs = self.costs[best.candidate.plan.options.method]
            ratio = costs.flops.exact(best.candidate.tokens)
        run = len(self.compared) * self._compared_on
        run += sum(len(r.each) for r in runners) + (checked.lost.count if checked else 0)
        return Optimized(
            targets=self.targets,
            measure=self.task.measure,
            patch_tokens=self.patch_tokens,
            met=not reason,
            reason=reason,
            chosen=best,
            gflops_ratio=ratio,
            bench=timed,
            checked=checked,
            tried=tuple(runners),
            nearest=nearest(runners, self.targets) if reason else (),
            images=self.halves.images,
            chosen_on=self.halves.choice.split,
            choice=chosen_on(self.halves.choice),
            compared=len(self.compared),
            work=run / (len(self.compared) * sum(self.halves.images)),
            threads=self.options.bench.threads or torch.get_num_threads(),
        )

    def _labelled(self, label: str) -> OnPass | None:
        on_pass = self.on_pass
        if on_pass is None:
            return None
        return lambda more, total: on_pass(f"{label} {more}".strip(), total)

    def _begin(self, label: str, total: int) -> Callable[[int], None]:
        return self.on_pass(label, total) if self.on_pass else lambda done: None
