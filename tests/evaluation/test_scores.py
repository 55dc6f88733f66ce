"""Each measure against plain code, on answers that are made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from tpcli.evaluation.answers import Answers
from tpcli.evaluation.scores import agreement, knn, nearest, recall, similarity, vote

CPU = torch.device("cpu")


def answers(count: int, width: int = 16, seed: int = 0, classes: int = 7) -> Answers:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, width)).astype(np.float32)
    return Answers(rows, random.integers(classes, size=count), 10.0)


@pytest.mark.parametrize("count", [15, 600])
def test_knn_is_that_of_scikit_learn(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpcli.evaluation.scores.QUERIES", 64)
    monkeypatch.setattr("tpcli.evaluation.scores.BANK", 100)
    queries, bank = answers(200, seed=1), answers(count, seed=2)
    bank = replace(bank, targets=bank.targets * 3 + 5)
    plain = KNeighborsClassifier(
        min(20, count), metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    expected = plain.fit(bank.rows, bank.targets).predict(queries.rows)
    assert vote(queries, bank, CPU).tolist() == expected.tolist()
    right = replace(queries, targets=np.where(np.arange(200) < 50, expected, -1))
    found = knn(right, bank, CPU)
    assert (found.score, found.count) == (25.0, 200)
    assert found.ci95 == pytest.approx((19.51, 31.43), abs=0.01)  # Wilson's


def test_nearest_leaves_an_image_out_of_its_own_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tpcli.evaluation.scores.QUERIES", 7)
    monkeypatch.setattr("tpcli.evaluation.scores.BANK", 5)
    rows = answers(23).rows
    asked = np.array([3, 0, 22, 11, 8, 9, 10, 21])
    found = torch.cat([where for _, where in nearest(rows[asked], rows, 6, CPU, asked)])
    cosines = F.cosine_similarity(
        torch.from_numpy(rows)[:, None], torch.from_numpy(rows)[None], dim=2
    ).fill_diagonal_(-2)
    assert found.tolist() == cosines[asked].topk(6, dim=1).indices.tolist()


def test_agreement_and_divergence() -> None:
    ours, theirs = answers(300, 5, seed=1), answers(300, 5, seed=2)
    a, b = torch.from_numpy(ours.rows).double(), torch.from_numpy(theirs.rows).double()
    found = agreement(ours, theirs)
    assert found.score == 100 * float((a.argmax(1) == b.argmax(1)).double().mean())
    kl = (b.softmax(1) * (b.log_softmax(1) - a.log_softmax(1))).sum(1).mean()
    assert found.more["kl"] == pytest.approx(float(kl), rel=1e-5)
    same = agreement(ours, ours)
    assert (same.score, same.more["kl"]) == (100.0, 0.0)


def test_similarity_and_neighbours() -> None:
    theirs = answers(50)
    ours = replace(theirs, rows=theirs.rows + 0.5 * answers(50, seed=1).rows)
    found = similarity(ours, theirs, CPU)
    plain = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(ours.rows, theirs.rows, strict=True)
    ]
    assert found.each == pytest.approx(plain, abs=1e-6)
    assert found.score == pytest.approx(100 * np.mean(plain), abs=1e-4)
    assert found.ci95[0] < found.score < found.ci95[1]
    assert 20 < found.more["neighbours"] < 100
    scaled = similarity(replace(theirs, rows=3 * theirs.rows), theirs, CPU)
    assert (scaled.score, scaled.more["neighbours"]) == (100.0, 100.0)
    assert scaled.ci95 == (100.0, 100.0)


def test_neighbours_of_few_images_and_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    few, one = answers(3), answers(1)
    assert similarity(few, few, CPU).more == {"neighbours": 100.0}
    assert similarity(one, one, CPU).more == {}
    monkeypatch.setattr("tpcli.evaluation.scores.MOST_QUERIES", 9)
    ours, theirs = answers(40, seed=1).rows, answers(40, seed=2).rows
    assert 0 < recall(ours, theirs, CPU) < 0.6
    assert recall(ours, ours, CPU) == 1
