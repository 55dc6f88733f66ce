"""What each measure is called, wherever it is named; no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A number in percent that says what a model is worth, the mean of one score per image.

    label: at the head of a column. axis: of the figure. noun: in sentences. is_share: whether an
    image is right or wrong, rather than more or less. is_of_unpooled: whether the unpooled model is
    what it is held against, so that its own is 100. steps: of the headline, in points below the
    unpooled model. more: what else is measured, by its name in files, and what heads its column.
    """

    name: str
    about: str
    label: str
    axis: str
    noun: str
    is_share: bool = True
    is_of_unpooled: bool = False
    steps: tuple[float, ...] = (0.0, 0.5, 1.0)
    more: tuple[tuple[str, str], ...] = ()


_ALL = (
    Measure(
        "top1",
        "needs a head and labels of its classes",
        "top-1",
        "top-1 accuracy (%)",
        "accuracy",
        more=(("top5", "top-5 %"),),
    ),
    Measure(
        "knn",
        "vote of the nearest training images; needs labels",
        "k-NN",
        "k-NN top-1 accuracy (%)",
        "k-NN accuracy",
    ),
    Measure(
        "agreement",
        "images whose best class is the unpooled model's; needs a head",
        "agreement",
        "agreement with the unpooled model (%)",
        "agreement",
        is_of_unpooled=True,
        more=(("kl", "KL"),),
    ),
    Measure(
        "similarity",
        "cosine of features to the unpooled model's; needs neither",
        "similarity",
        "similarity to the unpooled model's features (%)",
        "similarity",
        is_share=False,
        is_of_unpooled=True,
        steps=(1.0, 2.0, 5.0),
        more=(("neighbours", "neighbours %"),),
    ),
    Measure(
        "dense",
        "cosine of each patch's features to the unpooled model's; needs neither",
        "dense",
        "similarity to the unpooled model's features of each patch (%)",
        "similarity of patches",
        is_share=False,
        is_of_unpooled=True,
        steps=(1.0, 2.0, 5.0),
    ),
)

MEASURES = {measure.name: measure for measure in _ALL}
"""All of them, by name, in the order in which they are tried where none is asked for."""
