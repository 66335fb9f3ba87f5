"""The terms of DeCLIP's loss: by hand on a few numbers, and equal to plain loops over pairs on random ones."""

import math

import pytest
import torch

from run_scripts.data.text_views import NO_LABEL
from run_scripts.training.declip_losses import (
    FeatureQueue,
    masked_language_loss,
    multi_view_loss,
    nearest_neighbor_loss,
    simsiam_loss,
    sum_token_losses,
)


# Twins: written from the papers' formulas, pair by pair, in Python's own double precision.


def unit(rows: list[list[float]]) -> list[list[float]]:
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cross_entropy(logits: list[float], label: int) -> float:
    largest = max(logits)
    return largest + math.log(sum(math.exp(x - largest) for x in logits)) - logits[label]


def naive_one_way(queries, keys, scale: float) -> float:
    rows = [cross_entropy([scale * dot(query, key) for key in keys], i) for i, query in enumerate(queries)]
    return sum(rows) / len(rows)


def naive_multi_view(image_views, text_views, scale: float) -> float:
    total = 0.0
    for images in image_views:
        for texts in text_views:
            total += (naive_one_way(images, texts, scale) + naive_one_way(texts, images, scale)) / 2
    return total / 4


def naive_nearest(queries, queue):
    return [max(queue, key=lambda row: dot(query, row)) for query in queries]


def naive_simsiam(projections, predictions) -> float:
    z1, z2 = (unit(rows) for rows in projections)
    p1, p2 = (unit(rows) for rows in predictions)
    cosines = [dot(p1[i], z2[i]) + dot(p2[i], z1[i]) for i in range(len(z1))]
    return -sum(cosines) / len(cosines) / 2


@pytest.fixture
def views() -> list[torch.Tensor]:
    """Two image views and two text views of seven pairs."""
    return [torch.nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=-1) for _ in range(4)]


LOG_SCALE = torch.tensor(1.7, dtype=torch.float64)
SCALE = math.exp(1.7)


def test_multi_view_by_hand():
    right = torch.eye(2)
    swapped = right.flip(0)
    log_scale = torch.tensor(0.0)
    apart = math.log(1 + math.exp(-1))  # the right one is 1 nearer than the other
    assert multi_view_loss([right, right], [right, right], log_scale).item() == pytest.approx(apart, abs=1e-6)
    both = multi_view_loss([right, right], [right, swapped], log_scale).item()  # half of the four are 1 further
    assert both == pytest.approx(apart + 0.5, abs=1e-6)
    same = torch.ones(4, 1)
    assert multi_view_loss([same] * 2, [same] * 2, log_scale).item() == pytest.approx(math.log(4), abs=1e-6)


def test_multi_view_equals_its_twin(views):
    expected = naive_multi_view(*[[v.tolist() for v in part] for part in (views[:2], views[2:])], SCALE)
    assert multi_view_loss(views[:2], views[2:], LOG_SCALE).item() == pytest.approx(expected, abs=1e-6)


def test_nearest_neighbor_by_hand():
    images = torch.eye(2).requires_grad_()
    neighbors = torch.eye(2).requires_grad_()
    loss = nearest_neighbor_loss([images, images], [neighbors, neighbors.flip(0)], torch.tensor(0.0))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)) + 0.5, abs=1e-6)
    nearest_neighbor_loss([images], [neighbors], torch.tensor(0.0)).backward()
    assert images.grad.abs().sum() > 0 and neighbors.grad is None


def test_nearest_neighbor_equals_its_twin(views):
    queue = FeatureQueue(11, 5, seed=3)
    queue.features = queue.features.double()
    neighbors = [queue.find_nearest(view) for view in views[2:]]
    expected_neighbors = [naive_nearest(view.tolist(), queue.features.tolist()) for view in views[2:]]
    assert [rows.tolist() for rows in neighbors] == expected_neighbors
    terms = [naive_one_way(images.tolist(), rows, SCALE) for images in views[:2] for rows in expected_neighbors]
    actual = nearest_neighbor_loss(views[:2], neighbors, LOG_SCALE).item()
    assert actual == pytest.approx(sum(terms) / 4, abs=1e-6)


def test_simsiam_by_hand():
    east, north = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    assert simsiam_loss([east, north], [north, east]).item() == pytest.approx(-1)  # each predicts the other
    assert simsiam_loss([east, north], [east, north]).item() == pytest.approx(0, abs=1e-6)
    assert simsiam_loss([east, east], [east, -east]).item() == pytest.approx(0, abs=1e-6)
    projections = [east.clone().requires_grad_(), north.clone().requires_grad_()]
    predictions = [torch.ones(1, 2, requires_grad=True) for _ in range(2)]
    simsiam_loss(projections, predictions).backward()
    assert all(rows.grad is None for rows in projections) and all(rows.grad.any() for rows in predictions)


def test_simsiam_equals_its_twin():
    rows = [torch.randn(6, 4) for _ in range(4)]
    expected = naive_simsiam([r.tolist() for r in rows[:2]], [r.tolist() for r in rows[2:]])
    assert simsiam_loss(rows[:2], rows[2:]).item() == pytest.approx(expected, abs=1e-6)


def test_masked_language_by_hand():
    labels = torch.tensor([[NO_LABEL, 1, 0], [NO_LABEL] * 3, [NO_LABEL, NO_LABEL, 1]])
    sums, counts = sum_token_losses(torch.zeros(3, 3, 2), labels, lambda features: features)
    assert counts.tolist() == [2, 0, 1]
    torch.testing.assert_close(sums, math.log(2) * torch.tensor([2.0, 0.0, 1.0]))
    assert masked_language_loss(sums, counts).item() == pytest.approx(math.log(2))


def test_masked_language_equals_its_twin():
    features, classifier = torch.randn(4, 6, 3), torch.nn.Linear(3, 9)
    labels = torch.randint(9, (4, 6)).masked_fill(torch.rand(4, 6) < 0.6, NO_LABEL)
    logits = classifier(features).tolist()
    losses = [
        cross_entropy(logits[i][j], label)
        for i, row in enumerate(labels.tolist())
        for j, label in enumerate(row)
        if label != NO_LABEL
    ]
    actual = masked_language_loss(*sum_token_losses(features, labels, classifier)).item()
    assert actual == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert len(losses) > 3


def test_a_batch_without_masked_words_has_no_loss_and_no_gradient():
    classifier = torch.nn.Linear(3, 9)
    loss = masked_language_loss(*sum_token_losses(torch.randn(2, 4, 3), torch.full((2, 4), NO_LABEL), classifier))
    loss.backward()
    assert loss == 0 and not classifier.weight.grad.any()  # a gradient of 0, not none: DDP waits for one


def test_the_queue_holds_the_last_rows_in_a_ring():
    queue = FeatureQueue(5, 1, seed=0)
    queue.enqueue(torch.tensor([[1.0], [2.0], [3.0]]))
    queue.enqueue(torch.tensor([[4.0], [5.0], [6.0]]))
    assert queue.features[:, 0].tolist() == [6, 2, 3, 4, 5] and queue.position == 1
    queue.enqueue(torch.arange(7.0, 20.0)[:, None])  # more than it holds
    assert sorted(queue.features[:, 0].tolist()) == [15, 16, 17, 18, 19]
    queue.enqueue(torch.tensor([[20.0]]))
    assert sorted(queue.features[:, 0].tolist()) == [16, 17, 18, 19, 20]


def test_a_caption_in_the_queue_is_nearer_than_what_it_begins_with():
    queue = FeatureQueue(4096, 64, seed=0)
    caption = torch.nn.functional.normalize(torch.ones(1, 64), dim=-1)
    queue.enqueue(caption)
    likeness = torch.nn.functional.normalize(caption + 0.1 * torch.randn(300, 64), dim=-1)  # more than one part
    assert torch.equal(queue.find_nearest(likeness), caption.expand(300, -1))
