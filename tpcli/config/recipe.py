"""Recipe: how a model is fine-tuned, and its defaults; no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from functools import partial
from typing import Any, get_args, get_type_hints

from tpcli.errors import UserError, did_you_mean

PRECISIONS = ("bf16", "fp16", "fp32")
TRACKERS = ("tensorboard", "wandb")
OPTIMIZERS = tuple(
    """
    adabelief adadelta adafactor adafactorbv adafactorbvc adagrad adam adamax adamc adamp adamuon
    adamw adamwlegacy adan adanw adopt adoptc adoptw cadafactor cadafactorbv cadafactorbvc cadamc
    cadamp cadamw cadan cadanw cadopt cadoptc cadoptw clamb clambw claprop clion clionc cmars
    cnadamc cnadamw crmsproptf csgdc csgdp csgdw kron kronc kronw lamb lambc lambcd lambcw lambw
    laprop lapropc larc lars lion lionc madgrad madgradw mars momentum muon nadam nadamc nadamlegacy
    nadamuon nadamw nesterov nesterovw nlarc nlars nmuon novograd novogradc novogradw radabelief
    radam radamlegacy radamw rmsprop rmsproptf rmsproptfc rmsproptfw sgd sgdc sgdp sgdw
    """.split()
)
"""timm's, without those that need another package (bnb, fused) or a second backward pass."""
SCHEDULERS = ("constant", "cosine", "multistep", "poly", "rsqrt", "step", "tanh", "wsd")
AUGMENTATIONS = re.compile(
    r"none|rand(-(m|n|mmax)\d{1,3}|-(p|mstd)\d{1,3}(\.\d+)?|-inc[01]|-t(weights|3aw?))*"
    r"|augmix(-(m|w|d)\d{1,3}|-(a|mstd)\d{1,3}(\.\d+)?|-b[01])*"
    r"|(v0r?|originalr?|3a)(-mstd\d{1,3}(\.\d+)?)?"
)
"""The forms of timm's RandAugment, AugMix and AutoAugment."""
LARGE = 10**6
IMAGES_OF_LR = 512
"""The batch that `BASE_LR` is meant for; other batches scale it linearly, as DeiT does."""
BASE_LR = 4e-4
SHORT = 10
"""Runs of fewer epochs take mild augmentation, as strong augmentation needs time to pay off."""
STRONG = {"mix_prob": 0.5, "aa": "rand-m7-mstd0.5-mmax9-inc1", "erasing": 0.1}
MILD = {"mix_prob": 0.0, "aa": "none", "erasing": 0.0}
"""Default augmentation of long runs and of short ones."""
NONE = {**MILD, "hflip": 0.0, "crop_scale": 1.0}
"""Where only the head is trained: features are then computed once."""
CROP_SCALE = 0.5
HEAD_LR = 4e-3
"""`BASE_LR` where only the head is trained."""


def knob(
    panel: str,
    default: Any,
    text: str,
    *,
    within: tuple[float | None, float | None] = (None, None),
    choices: tuple[str, ...] = (),
    form: re.Pattern[str] | None = None,
    free: bool = False,
) -> Any:
    """A field: its panel, its help, what it accepts, whether a resumed run may change it."""
    accepted = {"low": within[0], "high": within[1], "choices": choices, "form": form}
    about = {"help": text, "panel": panel, **accepted, "free": free}
    return field(default=default, metadata=about)


training = partial(knob, "Training")
distillation = partial(knob, "Distillation")
augmentation = partial(knob, "Augmentation")
run = partial(knob, "Run")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: each field is an option of `tpcli finetune` and a key of its TOML.

    None means: decided from the model and the data (see each help).

    Raises:
        UserError: a value is out of range or unknown; names the option.
    """

    epochs: int = training(10, "Epochs to train.", within=(1, 100_000))
    batch_size: int = training(
        128, "Images in an optimizer step, summed over all processes.", within=(1, 2**20)
    )
    lr: float | None = training(
        None,
        f"Peak learning rate (default {BASE_LR:g} x batch / {IMAGES_OF_LR}, "
        f"{HEAD_LR:g} where only the head is trained).",
        within=(0, 1000),
    )
    min_lr: float = training(1e-6, "Final learning rate.", within=(0, 1000))
    warmup_epochs: float = training(0.5, "Epochs of linear warm-up.", within=(0, 100_000))
    weight_decay: float = training(0.05, "Weight decay.", within=(0, 1000))
    layer_decay: float | None = training(
        None,
        "Layer-wise learning rate decay, a factor per block from the head down.",
        within=(0.01, 1),
    )
    opt: str = training("adamw", "timm optimizer", choices=OPTIMIZERS)
    sched: str = training("cosine", "timm learning rate schedule", choices=SCHEDULERS)
    clip_grad: float | None = training(
        1.0, "Gradient norm to clip to; 0 for no clipping.", within=(0, LARGE)
    )
    grad_accumulation: int = training(
        1,
        "Gradient accumulation steps: parts of a batch, to save memory.",
        within=(1, 2**16),
        free=True,
    )
    precision: str | None = training(
        None,
        "Precision (default bf16, or fp32 where the processor has no fast bf16)",
        choices=PRECISIONS,
    )
    ema_decay: float = training(
        0.998,
        "Decay of the moving average of the weights (EMA), after a warm-up; 0 for none.",
        within=(0, 0.999999),
    )
    drop_path: float = training(0.0, "Stochastic depth rate of the last block.", within=(0, 0.99))
    freeze: str | None = training(
        None,
        "Weights that stay as they are: the backbone, so that only the head is trained",
        choices=("backbone",),
    )
    seed: int = training(0, "Random seed.", within=(0, 2**31 - 1))

    distill: bool | None = distillation(
        None,
        "Distil from the unpooled model (default: if the model is pooled and the unpooled one is "
        "good).",
    )
    distill_target: str | None = distillation(
        None,
        "What is learned from it (default output): its output beside the labels, or its image and "
        "patch features alone, without labels",
        choices=("output", "dense"),
    )
    distill_alpha: float = distillation(0.9, "Weight of the distillation loss.", within=(0, 1))
    distill_temperature: float = distillation(1.0, "Distillation temperature.", within=(1e-3, 1000))

    smoothing: float = augmentation(0.1, "Label smoothing.", within=(0, 0.99))
    mixup: float = augmentation(0.8, "Mixup alpha; 0 for none.", within=(0, 1000))
    cutmix: float = augmentation(1.0, "CutMix alpha; 0 for none.", within=(0, 1000))
    mix_prob: float | None = augmentation(
        None,
        f"Probability that a batch is mixed (default {STRONG['mix_prob']}, "
        f"0 in runs of fewer than {SHORT} epochs).",
        within=(0, 1),
    )
    aa: str | None = augmentation(
        None,
        f"timm RandAugment, AugMix or AutoAugment string, or none (default {STRONG['aa']}, "
        f"none in runs of fewer than {SHORT} epochs).",
        form=AUGMENTATIONS,
    )
    erasing: float | None = augmentation(
        None,
        f"Probability of random erasing (default {STRONG['erasing']}, "
        f"0 in runs of fewer than {SHORT} epochs).",
        within=(0, 1),
    )
    crop_scale: float | None = augmentation(
        None,
        f"Smallest area of a random crop, as a share of the image (default {CROP_SCALE}, 1 with "
        "freeze).",
        within=(0.01, 1),
    )
    hflip: float | None = augmentation(
        None,
        "Probability of a horizontal flip (default 0.5, 0 on the demo and with freeze).",
        within=(0, 1),
    )

    workers: int = run(
        2, "Worker processes that decode images, per training process.", within=(0, 256), free=True
    )
    save_minutes: float = run(
        10.0, "Minutes between checkpoints, at most.", within=(0, LARGE), free=True
    )
    eval_batch_size: int = run(
        256, "Images in a batch of the evaluation.", within=(1, 2**16), free=True
    )
    tracker: str | None = run(None, "Also log metrics to", choices=TRACKERS, free=True)

    def __post_init__(self) -> None:
        for item in fields(self):
            _check(item, getattr(self, item.name))
        if self.warmup_epochs > self.epochs:
            raise UserError(
                f"warmup_epochs {self.warmup_epochs:g} is more than the {self.epochs} epochs; "
                "use fewer."
            )
        if self.freeze and (self.distill or self.distill_target == "dense"):
            raise UserError(
                "`freeze=backbone` trains a head on labels, so it can't `distill`; use one of them."
            )
        usual = {**(MILD if self.epochs < SHORT else STRONG), "crop_scale": CROP_SCALE}
        for name, value in (NONE if self.freeze else usual).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        if self.lr is not None:
            return self.lr
        return (HEAD_LR if self.freeze else BASE_LR) * self.batch_size / IMAGES_OF_LR

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return bool(self.mix_prob) and (self.mixup > 0 or self.cutmix > 0)

    @property
    def caches_features(self) -> bool:
        """Whether an image has the same features in every epoch: only the head is trained, and
        nothing is random."""
        random = (self.erasing, self.hflip, self.drop_path, self.crop_scale != 1, self.aa != "none")
        return self.freeze is not None and not self.mixes and not any(random)

    def to_dict(self) -> dict[str, object]:
        """Plain values, with the learning rate that is used."""
        return {**asdict(self), "lr": self.peak_lr}

    def fixed(self) -> dict[str, object]:
        """What a resumed run must have in common with the one that it continues."""
        free = {item.name for item in fields(self) if item.metadata["free"]}
        return {name: value for name, value in self.to_dict().items() if name not in free}


def recipe(values: Mapping[str, object]) -> Recipe:
    """A recipe of what is given (None means not given), the rest default.

    Raises:
        UserError: a name is unknown, or a value is not accepted.
    """
    known = {item.name for item in fields(Recipe)}
    for name in values:
        if name not in known:
            raise UserError(f"recipe has no {name!r}.{did_you_mean(name, known)}")
    return Recipe(**{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]


def types_of(name: str) -> tuple[Any, ...]:
    """The types of a field, but for None."""
    kind = get_type_hints(Recipe)[name]
    return tuple(t for t in get_args(kind) or (kind,) if t is not type(None))


def _check(item: Field[Any], value: object) -> None:
    about, types = item.metadata, types_of(item.name)
    if value is None and type(None) in get_args(get_type_hints(Recipe)[item.name]):
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (type(value) in types or (is_number and isinstance(value, int) and float in types)):
        wanted = " or ".join(t.__name__ for t in types)
        raise UserError(f"{item.name} {value!r} is not of type {wanted}.")
    if about["choices"] and value not in about["choices"]:
        raise UserError(
            f"{item.name} {value!r} is unknown; use one of {', '.join(about['choices'])}."
            f"{did_you_mean(str(value), about['choices'])}"
        )
    if about["form"] and not about["form"].fullmatch(str(value)):
        raise UserError(
            f"{item.name} {value!r} is not a string that timm knows; use one like "
            f"{STRONG['aa']}, augmix-m3, v0 or original, or none."
        )
    low, high = about["low"], about["high"]
    if is_number and low is not None and not (low <= value <= high):
        raise UserError(f"{item.name} {value!r} is out of range; use {low:g} to {high:g}.")
