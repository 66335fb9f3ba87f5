# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
The terms of DeCLIP's loss on FDT embeddings, each a function of tensors of the whole batch, and its queue of captions.

An image is seen in two views (augmented twice) and a caption in two: words masked, words edited.

Source: Li et al., "Supervision Exists Everywhere: A Data Efficient Contrastive Language-Image Pre-training Paradigm",
ICLR 2022 (arXiv 2110.05208); for FDT `DECLIP_FDT` of https://github.com/yuxiaochen1103/FDT at commit ccf6983.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from modeling_fdt.loss_fdt import contrastive_logits, contrastive_loss
from run_scripts.data.text_views import NO_LABEL


# How many captions are compared with the queue at a time: similarities to 65,536 take 67 MB.
_ROWS_AT_ONCE = 256


def multi_view_loss(
    image_views: Sequence[torch.Tensor], text_views: Sequence[torch.Tensor], logit_scale: torch.Tensor
) -> torch.Tensor:
    """The mean of the symmetric InfoNCE of every image view with every text view.

    Args:
        image_views, text_views: each (batch_size, dim), rows of L2 norm 1; row i of all views is pair i.
        logit_scale: natural logarithm of the factor on cosine similarities, capped.

    Returns:
        A scalar, at least 0; `log(batch_size)` for embeddings that are all equal.
    """
    losses = [
        contrastive_loss(contrastive_logits(images, texts, logit_scale))
        for images in image_views
        for texts in text_views
    ]
    return torch.stack(losses).mean()


def nearest_neighbor_loss(
    image_views: Sequence[torch.Tensor], neighbor_views: Sequence[torch.Tensor], logit_scale: torch.Tensor
) -> torch.Tensor:
    """The mean cross-entropy of every image view among the neighbours of every text view.

    One direction alone: a neighbour is a caption of an earlier step, to which no gradient goes.

    Args:
        image_views: each (batch_size, dim), rows of L2 norm 1.
        neighbor_views: each (batch_size, dim); row i is the caption in the queue that is nearest to caption i.
        logit_scale: natural logarithm of the factor on cosine similarities, capped.

    Returns:
        A scalar, at least 0.
    """
    losses = []
    for images in image_views:
        pairs = torch.arange(len(images), device=images.device)
        for neighbors in neighbor_views:
            logits = contrastive_logits(images, neighbors.detach(), logit_scale)
            losses.append(nn.functional.cross_entropy(logits, pairs))
    return torch.stack(losses).mean()


def simsiam_loss(projections: Sequence[torch.Tensor], predictions: Sequence[torch.Tensor]) -> torch.Tensor:
    """The negative mean cosine of what one view predicts and what the other is, to which no gradient goes.

    Args:
        projections: of two views, each (batch_size, dim).
        predictions: what the predictor makes of them, in the same order, each (batch_size, dim).

    Returns:
        A scalar in [-1, 1].

    Source: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021 (arXiv 2011.10566), equation 2.
    """
    (first, second), (of_first, of_second) = projections, predictions
    cosines = [
        nn.functional.cosine_similarity(prediction.float(), target.detach().float(), dim=-1).mean()
        for prediction, target in ((of_first, second), (of_second, first))
    ]
    return -torch.stack(cosines).mean()


def sum_token_losses(
    word_features: torch.Tensor, labels: torch.Tensor, classify: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """For every caption the cross-entropies of its masked words, added up, and their number.

    Sums, not means, can be added over micro-batches and processes: see [`masked_language_loss`]. Only masked words
    are classified, so logits over the vocabulary are few.

    Args:
        word_features: (batch_size, num_tokens, hidden_size), what the text tower says of a masked caption's tokens.
        labels: (batch_size, num_tokens), the token before masking, `NO_LABEL` where none was masked.
        classify: gives logits over the vocabulary, (num_masked, vocab_size), of features (num_masked, hidden_size).

    Returns:
        Two tensors of shape (batch_size,), in float32.
    """
    is_masked = labels != NO_LABEL
    losses = nn.functional.cross_entropy(
        classify(word_features[is_masked]).float(), labels[is_masked], reduction="none"
    )
    captions = is_masked.nonzero()[:, 0]
    sums = losses.new_zeros(len(labels)).index_add(0, captions, losses)
    return sums, is_masked.sum(dim=1).to(sums.dtype)


def masked_language_loss(sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of all masked words of a batch; 0 if there is none.

    Args:
        sums, counts: (batch_size,), what [`sum_token_losses`] gives.
    """
    return sums.sum() / counts.sum().clamp(min=1)


class FeatureQueue:
    """The embeddings of the last captions, which a new caption finds its nearest neighbour among.

    It begins with random directions, as the original's does. They are as good as orthogonal to everything, so any
    caption in the queue is nearer.

    Args:
        size: how many embeddings it holds.
        dim: their size.
        seed: of the random directions.
        device: where it is held.
    """

    def __init__(self, size: int, dim: int, seed: int, device: torch.device | str = "cpu"):
        random_directions = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))
        self.features = nn.functional.normalize(random_directions, dim=-1).to(device)
        self.position = 0  # of the oldest, which is replaced next

    def find_nearest(self, features: torch.Tensor) -> torch.Tensor:
        """Of every row, (num_rows, dim) of L2 norm 1, the embedding in the queue of the largest cosine."""
        with torch.autocast(features.device.type, enabled=False):
            parts = features.detach().to(self.features.dtype).split(_ROWS_AT_ONCE)
            nearest = torch.cat([(part @ self.features.T).argmax(dim=-1) for part in parts])
        return self.features[nearest]

    def enqueue(self, features: torch.Tensor) -> None:
        """Put embeddings, (num_rows, dim) of L2 norm 1, in the place of the oldest ones."""
        size = len(self.features)
        places = (self.position + torch.arange(len(features), device=features.device)) % size
        # Of more rows than places the last ones stay.
        self.features[places[-size:]] = features[-size:].detach().to(self.features.dtype)
        self.position = (self.position + len(features)) % size
