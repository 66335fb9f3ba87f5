"""Retrieval against naive twins, open_clip's own code and CLIP_benchmark's definition."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from run_scripts.evaluation.metrics import chance_recall_of, cosine_scores, first_hit_ranks
from run_scripts.evaluation.retrieval import list_pairs, retrieval_metrics, retrieval_ranks
from tests.outside import outside_function


def random_embeds(num_items: int, seed: int, dim: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num_items, dim, generator=generator), dim=-1)


def random_pairs(num_images: int, seed: int) -> torch.Tensor:
    """Two to six captions an image."""
    counts = np.random.default_rng(seed).integers(2, 7, num_images)
    images = torch.from_numpy(np.repeat(np.arange(num_images), counts))
    return torch.stack([images, torch.arange(len(images))], dim=1)


def relevance(pairs: torch.Tensor, num_images: int, num_captions: int) -> torch.Tensor:
    is_relevant = torch.zeros(num_images, num_captions, dtype=torch.bool)
    is_relevant[pairs[:, 0], pairs[:, 1]] = True
    return is_relevant


def all_metrics(images: torch.Tensor, captions: torch.Tensor, pairs: torch.Tensor) -> dict[str, float]:
    metrics = retrieval_metrics(*retrieval_ranks(images, captions, pairs), pairs)
    return {name: metric.value for name, metric in metrics.items()}


@pytest.mark.parametrize("chunk_size", [5, 16, 1000])
def test_ranks_in_blocks_equal_those_of_the_whole_matrix(chunk_size):
    images, pairs = random_embeds(23, seed=0), random_pairs(23, seed=1)
    captions = random_embeds(len(pairs), seed=2)
    captions[40] = captions[3]  # a tie between a right and a wrong caption
    image_ranks, caption_ranks = retrieval_ranks(images, captions, pairs, chunk_size)
    scores, is_relevant = cosine_scores(images, captions), relevance(pairs, 23, len(captions))
    assert torch.equal(image_ranks, first_hit_ranks(scores, is_relevant))
    assert torch.equal(caption_ranks, first_hit_ranks(scores.T, is_relevant.T))


def clip_benchmark_recall(scores: torch.Tensor, positive_pairs: torch.Tensor, k: int) -> float:
    """CLIP_benchmark's definition: the share of queries with a positive among the k that topk gives."""
    return np.mean([row[top].any() for row, top in zip(positive_pairs, scores.topk(k).indices, strict=True)])


def test_recalls_equal_the_definition_of_clip_benchmark():
    images, pairs = random_embeds(40, seed=3).double(), random_pairs(40, seed=4)
    captions = random_embeds(len(pairs), seed=5).double()
    metrics, is_relevant = all_metrics(images, captions, pairs), relevance(pairs, 40, len(captions))
    for k in (1, 5, 10):
        image_to_text = clip_benchmark_recall(images @ captions.T, is_relevant, k)
        text_to_image = clip_benchmark_recall(captions @ images.T, is_relevant.T, k)
        assert metrics[f"image_to_text_R@{k}"] == pytest.approx(image_to_text, abs=1e-9)
        assert metrics[f"text_to_image_R@{k}"] == pytest.approx(text_to_image, abs=1e-9)


def test_metrics_equal_those_of_open_clip():
    # An odd number: of an even one open_clip rounds the median rank down, ours lies between the middle two.
    images, captions = random_embeds(51, seed=6).double(), random_embeds(51, seed=7).double()
    pairs = torch.arange(51)[:, None].repeat(1, 2)
    expected = outside_function("open_clip_train/train.py", "get_clip_metrics")(images, captions, 100.0)
    metrics = all_metrics(images, captions, pairs)
    for direction in ("image_to_text", "text_to_image"):
        assert metrics[f"{direction}_median_rank"] == expected[f"{direction}_median_rank"]
        for k in (1, 5, 10):
            assert metrics[f"{direction}_R@{k}"] == pytest.approx(expected[f"{direction}_R@{k}"], abs=1e-9)


def test_metrics_by_hand():
    # Image 0 has captions 0 and 1, image 1 caption 2, image 2 none. Each line: which wrong ones come first.
    pairs = torch.tensor([[0, 0], [0, 1], [1, 2]])
    image_ranks, caption_ranks = torch.tensor([0, 1, -1]), torch.tensor([0, 2, 1])
    metrics = retrieval_metrics(image_ranks, caption_ranks, pairs)
    values = {name: metric.value for name, metric in metrics.items()}
    assert values["image_to_text_R@1"] == 1 / 2 and values["text_to_image_R@1"] == 1 / 3
    assert values["image_to_text_median_rank"] == 1.5 and values["text_to_image_median_rank"] == 2
    assert values["image_to_text_R@5"] == values["text_to_image_R@10"] == 1
    assert values["rsum"] == pytest.approx(50 + 100 / 3 + 400)
    assert values["rsum_rounded"] == pytest.approx(50 + 33.3 + 400)
    assert metrics["image_to_text_R@1"].chance == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert metrics["rsum"].chance == pytest.approx(sum(100 * metrics[f"{d}_R@{k}"].chance for d, k in directions()))


def directions() -> list[tuple[str, int]]:
    return [(direction, k) for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


def test_chance_is_that_of_the_whole_matrix():
    pairs = random_pairs(12, seed=8)
    images, captions = random_embeds(12, seed=9), random_embeds(len(pairs), seed=10)
    metrics = retrieval_metrics(*retrieval_ranks(images, captions, pairs), pairs)
    is_relevant = relevance(pairs, 12, len(captions))
    expected = chance_recall_of(is_relevant.sum(dim=1), len(captions), 5)
    assert metrics["image_to_text_R@5"].chance == pytest.approx(expected)
    assert metrics["text_to_image_R@5"].chance == pytest.approx(chance_recall_of(is_relevant.sum(dim=0), 12, 5))


def test_ties_do_not_depend_on_the_order():
    # Five different embeddings among 60 captions: nearly everything ties.
    images, pairs = random_embeds(15, seed=11), random_pairs(15, seed=12)
    captions = random_embeds(5, seed=13)[torch.arange(len(pairs)) % 5]
    expected = all_metrics(images, captions, pairs)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        image_order = torch.randperm(len(images), generator=generator)
        caption_order = torch.randperm(len(captions), generator=generator)
        moved = torch.stack([image_order.argsort()[pairs[:, 0]], caption_order.argsort()[pairs[:, 1]]], dim=1)
        moved = moved[torch.randperm(len(moved), generator=generator)]
        # Means of the same ranks in another order may differ in the last bits of float64.
        assert all_metrics(images[image_order], captions[caption_order], moved) == pytest.approx(expected, abs=1e-9)


def test_one_score_for_everything_finds_nothing():
    pairs = torch.arange(30)[:, None].repeat(1, 2)
    ones = F.normalize(torch.ones(30, 8), dim=-1)
    metrics = all_metrics(ones, ones, pairs)
    assert metrics["rsum"] == 0 and metrics["image_to_text_median_rank"] == 30


def test_an_image_without_captions_is_a_candidate_but_no_query():
    images, captions = torch.eye(3), torch.eye(3)[:2]
    captions[1] = torch.tensor([0.0, 0.6, 0.8])  # nearest to image 2, which has no caption
    image_ranks, caption_ranks = retrieval_ranks(images, captions, torch.tensor([[0, 0], [1, 1]]))
    assert image_ranks.tolist() == [0, 0, -1]
    assert caption_ranks.tolist() == [0, 1]


def test_equal_captions_can_be_one():
    captions = [["a dog", "a pet"], [], ["a dog", "a dog"]]
    texts, pairs = list_pairs(captions, merge_equal=False)
    assert texts == ["a dog", "a pet", "a dog", "a dog"] and pairs.tolist() == [[0, 0], [0, 1], [2, 2], [2, 3]]
    texts, pairs = list_pairs(captions, merge_equal=True)
    assert texts == ["a dog", "a pet"] and pairs.tolist() == [[0, 0], [0, 1], [2, 0]]


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor, in bytes, that any operation gives."""

    def __init__(self):
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, torch.Tensor):
                self.num_bytes = max(self.num_bytes, leaf.numel() * leaf.element_size())
        return outputs


def test_memory_stays_flat_as_the_gallery_grows():
    largest = {}
    for num_images in (130, 500):
        pairs = torch.arange(5 * num_images)
        pairs = torch.stack([pairs // 5, pairs], dim=1)
        images, captions = random_embeds(num_images, seed=14, dim=4), random_embeds(len(pairs), seed=15, dim=4)
        with LargestTensor() as mode:
            retrieval_ranks(images, captions, pairs, chunk_size=128)
        largest[num_images] = mode.num_bytes
    # A block of scores in float64; the whole matrix would be 0.7 MB and 10 MB.
    assert largest == {130: 128 * 128 * 8, 500: 128 * 128 * 8}


@pytest.mark.parametrize(
    "images, captions, message",
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), "differ in size"),
        (torch.full((2, 3), torch.nan), torch.zeros(2, 3), "finite"),
    ],
)
def test_bad_embeddings_are_refused(images, captions, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(images, captions, torch.tensor([[0, 0]]))
