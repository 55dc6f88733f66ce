"""Measures of tokens against independent code: NumPy's FFT, SciPy, scikit-learn, plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from tests.helpers.models import tokens
from tpcli.analysis import measures as likeness
from tpcli.analysis import measures as rank
from tpcli.analysis import measures as redundancy
from tpcli.analysis import measures as spectrum
from tpcli.config.options import pooling_options


def smooth(batch: int, grid: tuple[int, int], channels: int) -> Tensor:
    """Tokens on a grid, neighbours alike: (B, h * w, C)."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(batch, channels, 4, 4, generator=generator)
    maps = torch.nn.functional.interpolate(maps, size=grid, mode="bilinear")
    noise = 0.2 * torch.randn(batch, channels, *grid, generator=generator)
    return (maps + noise + 0.3).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("side", [8, 7])
def test_the_spectrum_is_numpys(side: int) -> None:
    x = smooth(2, (side, side), 5)
    found = spectrum.log_amplitudes(x, (side, side))
    for b in range(2):
        logs = np.zeros((side, side))
        for c in range(5):
            amplitude = np.abs(np.fft.fft2(x[b, :, c].double().reshape(side, side).numpy()))
            logs += np.fft.fftshift(np.log(amplitude + 1e-6)) / 5
        line = np.diag(logs)[side // 2 :]
        np.testing.assert_allclose(found[b].numpy(), line - line[0], atol=1e-4)


def test_a_grid_that_is_not_square_goes_from_centre_to_corner() -> None:
    assert spectrum.half_diagonal((4, 8)) == ([2, 3], [4, 7])
    assert spectrum.half_diagonal((6, 6)) == ([3, 4, 5], [3, 4, 5])
    assert spectrum.log_amplitudes(smooth(1, (6, 10), 3), (6, 10)).shape == (1, 3)


def test_smoothing_lowers_high_frequencies() -> None:
    x = smooth(4, (8, 8), 6)
    mixed = 0.5 * x + 0.5 * x.mean(1, keepdim=True)
    for measure in (lambda t: spectrum.log_amplitudes(t, (8, 8))[:, -1], spectrum.hf_lf_ratio):
        assert (measure(mixed) < measure(x)).all()


def test_ratio_and_residual_by_their_definitions() -> None:
    x = smooth(3, (4, 6), 5)
    for b, one in enumerate(x.double().numpy()):
        mean = np.ones((24, 1)) @ one.mean(0, keepdims=True)
        ratio = np.linalg.norm(one - mean) / np.linalg.norm(mean)
        assert spectrum.hf_lf_ratio(x)[b].item() == pytest.approx(ratio, rel=1e-5)

        def size(m: np.ndarray) -> float:
            return float(np.sqrt(np.linalg.norm(m, 1) * np.linalg.norm(m, np.inf)))

        expected = size(one - mean) / size(one)
        assert rank.residual(x)[b].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(2, 10, 24), (2, 24, 10)])
def test_effective_rank_by_scipys_singular_values(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 1
    for b, one in enumerate(x.numpy()):
        values = scipy.linalg.svdvals(one.astype(np.float64))
        share = values / values.sum()
        expected = np.exp(-(share * np.log(share)).sum())
        assert rank.effective_rank(x)[b].item() == pytest.approx(expected, rel=1e-6)


def test_effective_rank_of_what_is_known() -> None:
    assert rank.effective_rank(torch.ones(1, 5, 3)).item() == pytest.approx(1, abs=1e-5)
    assert rank.effective_rank(torch.eye(4).unsqueeze(0)).item() == pytest.approx(4)


def test_likeness_pair_by_pair() -> None:
    x = smooth(2, (3, 4), 5)
    for b, one in enumerate(x.double().numpy()):
        norms = np.linalg.norm(one, axis=1)
        pairs = list(itertools.permutations(range(12), 2))
        cosine = np.mean([one[i] @ one[j] / norms[i] / norms[j] for i, j in pairs])
        assert likeness.mean_cosine(x)[b].item() == pytest.approx(cosine, abs=1e-6)
        nearest = [
            min(np.linalg.norm(one[i] - one[j]) for j in range(12) if j != i) for i in range(12)
        ]
        expected = np.mean(nearest) / norms.mean()
        assert likeness.nearest_distance(x)[b].item() == pytest.approx(expected, rel=1e-5)


def test_ranks_of_pairs_are_compared_as_scipy_does() -> None:
    before, after = smooth(3, (3, 4), 5), smooth(3, (3, 4), 5) + tokens(3, 12, 5)
    found = likeness.rank_consistency(after, before)
    upper = np.triu_indices(12, 1)
    for b in range(3):
        cosines = []
        for x in (before, after):
            unit = x[b].double().numpy()
            unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
            cosines.append((unit @ unit.T)[upper])
        expected = scipy.stats.spearmanr(*cosines).statistic
        assert found[b].item() == pytest.approx(expected, abs=1e-3)
    assert likeness.rank_consistency(2 * after, after) == pytest.approx(1.0)


@pytest.mark.parametrize("k", [48, 32, 16])
def test_ward_keeps_nearly_what_k_means_of_scikit_learn_keeps(k: int) -> None:
    x = tokens(2, 64, 12)
    ward = redundancy.reconstruction(x, k, pooling_options("ward"), (8, 8), 0.0)
    for b, one in enumerate(x.double().numpy()):
        best = KMeans(k, n_init=10, random_state=0).fit(one).inertia_
        whole = ((one - one.mean(0)) ** 2).sum()
        assert redundancy.spread_loss(x)[b].item() == pytest.approx(whole, rel=1e-5)
        assert 1 - ward[b].item() / whole >= 0.98 * (1 - best / whole)


def test_a_pruned_token_is_as_far_as_the_nearest_one_kept() -> None:
    x = tokens(2, 16, 6)
    found = redundancy.reconstruction(x, 5, pooling_options("random"), (4, 4), 0.0)
    every = torch.cdist(x, x)
    from tpcli.pooling import get_method

    kept = get_method("random")(x, 5).medoids
    assert kept is not None
    for b in range(2):
        expected = every[b][:, kept[b]].amin(1).square().sum()
        torch.testing.assert_close(found[b], expected, rtol=1e-4, atol=1e-4)
