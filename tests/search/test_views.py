"""Random crops of calibration images."""

from __future__ import annotations

import torch

from tpcli.search.trials import SMALLEST_CROP, random_views


def test_crops_are_pieces_of_their_image() -> None:
    """A ramp from left to right stays a ramp: as steep as the crop is wide, or its mirror image."""
    ramp = torch.linspace(0, 1, 64).expand(40, 3, 64, 64)
    views = torch.cat(random_views([ramp]))
    assert views.shape == (80, 3, 64, 64)
    assert torch.equal(views[:, 0], views[:, 2])
    steps = views[:, 0, 32].diff(dim=-1)[:, 4:-4]
    torch.testing.assert_close(steps, steps.mean(-1, keepdim=True).expand_as(steps))
    width = steps.mean(-1).abs() * 63
    assert SMALLEST_CROP**0.5 - 1e-3 <= width.min() <= 0.7
    assert 0.95 <= width.max() <= 1 + 1e-3
    assert 20 < (steps.mean(-1) < 0).sum() < 60
    middle = views[:, 0, 32, 31:33].mean(-1)
    assert ((middle - width / 2 > -0.02) & (middle + width / 2 < 1.02)).all()


def test_views_are_the_same_every_time_and_differ_from_each_other() -> None:
    images = torch.rand(2, 3, 16, 16)
    first, second = random_views([images])
    assert torch.equal(first, random_views([images])[0])
    assert not torch.equal(first, second)
