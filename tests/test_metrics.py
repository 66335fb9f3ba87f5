# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Metrics against matrices worked out by hand, and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score, top_k_accuracy_score

from run_scripts.evaluation import metrics


SCORES = torch.tensor([[0.9, 0.1, 0.5], [0.3, 0.2, 0.1], [0.4, 0.6, 0.5]])


def test_ranks_by_hand():
    is_relevant = torch.eye(3, dtype=torch.bool)
    assert metrics.first_hit_ranks(SCORES, is_relevant).tolist() == [0, 1, 1]
    assert metrics.recall_at(SCORES, is_relevant, k=1) == pytest.approx(1 / 3)
    assert metrics.recall_at(SCORES, is_relevant, k=2) == 1


def test_best_of_several_right_candidates_counts():
    is_relevant = torch.tensor([[False, True, True], [True, False, True], [True, False, False]])
    assert metrics.first_hit_ranks(SCORES, is_relevant).tolist() == [1, 0, 2]


def test_ties_count_against_the_model():
    scores, is_relevant = torch.zeros(4, 4), torch.eye(4, dtype=torch.bool)
    assert metrics.recall_at(scores, is_relevant, k=3) == 0
    assert metrics.accuracy_among(scores, is_relevant, num_choices=2, seed=0) == 0
    assert metrics.class_accuracy(scores, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])) == 0


def test_recall_equals_top_k_accuracy_of_scikit_learn():
    scores = torch.rand(50, 20, generator=torch.Generator().manual_seed(0))
    labels = np.arange(50) % 20
    is_relevant = torch.arange(20) == torch.tensor(labels)[:, None]
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, scores.numpy(), k=k, labels=np.arange(20))
        assert metrics.recall_at(scores, is_relevant, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 5])
def test_random_scores_reach_chance(k):
    generator = torch.Generator().manual_seed(0)
    is_relevant = torch.rand(4000, 20, generator=generator) < 0.1
    is_relevant[:, 0] = True
    scores = torch.rand(4000, 20, generator=generator)
    chance = metrics.chance_recall_of(is_relevant.sum(dim=1), 20, k)
    # Four standard deviations of a share of 4,000 draws.
    assert metrics.recall_at(scores, is_relevant, k) == pytest.approx(chance, abs=4 * 0.5 / 4000**0.5)


def test_accuracy_among_lies_between_chance_and_certainty():
    generator = torch.Generator().manual_seed(1)  # another seed than the draw
    is_relevant = torch.arange(30) == torch.arange(3000)[:, None] % 30
    scores = torch.rand(3000, 30, generator=generator)
    assert metrics.accuracy_among(scores, is_relevant, 10, seed=0) == pytest.approx(0.1, abs=4 * 0.3 / 3000**0.5)
    assert metrics.accuracy_among(scores + 2 * is_relevant, is_relevant, 10, seed=0) == 1
    assert metrics.accuracy_among(scores, is_relevant, 30, seed=0) == metrics.recall_at(scores, is_relevant, 1)


def test_class_accuracy_by_hand():
    # Best candidates are 0, 0 and 1, of classes 5, 5 and 7.
    candidate_classes = torch.tensor([5, 7, 5])
    query_classes = torch.tensor([5, 7, 7])
    assert metrics.class_accuracy(SCORES, candidate_classes, query_classes) == pytest.approx(2 / 3)
    assert metrics.largest_class_share(query_classes) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "scores, is_relevant, message",
    [
        (torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool), "one shape"),
        (torch.full((1, 2), float("nan")), torch.ones(1, 2, dtype=torch.bool), "finite"),
        (torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool), "relevant"),
    ],
)
def test_bad_input_is_refused(scores, is_relevant, message):
    with pytest.raises(ValueError, match=message):
        metrics.first_hit_ranks(scores, is_relevant)


def test_too_many_choices_are_refused():
    with pytest.raises(ValueError, match="num_choices must be from 2 to 3, got 4"):
        metrics.accuracy_among(SCORES, torch.eye(3, dtype=torch.bool), num_choices=4, seed=0)


@pytest.fixture
def random_scores() -> tuple[torch.Tensor, np.ndarray]:
    """(200, 30) scores in float64 without ties, and classes of which some are rare."""
    generator = np.random.default_rng(0)
    labels = generator.choice(30, 200, p=np.arange(1, 31) / np.arange(1, 31).sum())
    return torch.from_numpy(generator.normal(size=(200, 30))), labels


def test_metrics_equal_those_of_scikit_learn_and_the_definition_of_open_clip(random_scores):
    scores, labels = random_scores
    targets = torch.from_numpy(labels)
    ranks = metrics.first_hit_ranks(scores, torch.arange(30) == targets[:, None])
    ours = [metrics.recall_of(ranks, k) for k in (1, 5)]
    scikit = [top_k_accuracy_score(labels, scores.numpy(), k=k, labels=np.arange(30)) for k in (1, 5)]
    assert ours == pytest.approx(scikit, abs=1e-9)
    macro = recall_score(labels, scores.argmax(dim=1), average="macro", labels=np.unique(labels), zero_division=0)
    assert metrics.mean_per_class(ranks < 1, targets) == pytest.approx(macro, abs=1e-9)
    # open_clip's and CLIP_benchmark's: the right class is among the k that topk gives.
    by_topk = [(scores.topk(k).indices == targets[:, None]).any(dim=1).double().mean().item() for k in (1, 5)]
    assert ours == pytest.approx(by_topk, abs=1e-9)


def test_mean_per_class_by_hand():
    hits = torch.tensor([True, True, False, False])
    assert metrics.mean_per_class(hits, torch.tensor([7, 7, 7, 2])) == pytest.approx((2 / 3 + 0) / 2)


def test_equal_embeddings_get_equal_scores_wherever_they_stand():
    generator = torch.Generator().manual_seed(0)
    query, candidate = torch.randn(7, 67, generator=generator), torch.randn(1, 67, generator=generator)
    scores = metrics.cosine_scores(query, candidate.repeat(101, 1))
    assert torch.equal(scores, scores[:, :1].expand(-1, 101))
    # float32 rounds once, at the end.
    torch.testing.assert_close(scores[:, 0], query @ candidate[0], rtol=0, atol=1e-5)


def test_chance_when_all_candidates_are_looked_at():
    assert metrics.chance_recall_of(torch.tensor([1, 2]), num_candidates=3, k=10) == 1
    assert metrics.chance_recall_of(torch.tensor([1, 2]), num_candidates=4, k=1) == pytest.approx((1 / 4 + 2 / 4) / 2)
