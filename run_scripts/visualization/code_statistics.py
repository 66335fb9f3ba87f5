# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What codes do over a data set, kept in memory that does not grow with it."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch


class TopItems:
    """For every code the items with the largest weights so far, of a stream of any length.

    Attributes:
        weights: (num_codes, top_k), falling; 0 where there is no item.
        ids: (num_codes, top_k) integers; -1 where there is no item.

    Args:
        num_codes: size of the codebook.
        top_k: how many items to keep for each code.
    """

    def __init__(self, num_codes: int, top_k: int):
        self.weights = torch.zeros(num_codes, top_k)
        self.ids = torch.full((num_codes, top_k), -1)

    def update(
        self, code_weights: torch.Tensor, ids: list[int]
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Take in a batch.

        Args:
            code_weights: (batch_size, num_codes), at least 0; items of weight 0 are never kept.
            ids: one for each item, from 0. Of items with the same id only one is kept.

        Returns:
            What entered, as (code, row of the batch), and what left, as (code, id).
        """
        first_rows = torch.tensor(sorted({item: row for row, item in reversed(list(enumerate(ids)))}.values()))
        top_k = self.weights.shape[1]
        best, best_rows = code_weights[first_rows].topk(min(top_k, len(first_rows)), dim=0)
        best, best_rows = best.T, first_rows[best_rows.T]  # (num_codes, at most top_k)
        best_ids = torch.tensor(ids)[best_rows]
        is_known = (best_ids[:, :, None] == self.ids[:, None, :]).any(dim=-1)
        best = best.masked_fill(is_known, 0)
        best_ids = best_ids.masked_fill(best <= 0, -1)

        # A stable order lets the earlier of two equal items stay.
        joined, order = torch.cat([self.weights, best], dim=1).sort(dim=1, descending=True, stable=True)
        kept = order[:, :top_k]
        stays = torch.zeros(order.shape, dtype=torch.bool).scatter(1, kept, True)
        left_codes, left_places = ((self.ids >= 0) & ~stays[:, :top_k]).nonzero(as_tuple=True)
        left = list(zip(left_codes.tolist(), self.ids[left_codes, left_places].tolist(), strict=True))
        new_codes, new_places = ((best_ids >= 0) & stays[:, top_k:]).nonzero(as_tuple=True)
        entered = list(zip(new_codes.tolist(), best_rows[new_codes, new_places].tolist(), strict=True))
        self.weights = joined[:, :top_k].contiguous()
        self.ids = torch.cat([self.ids, best_ids], dim=1).gather(1, kept)
        return entered, left


class ModalityStatistics:
    """How often and how strongly codes fire in one modality, and the items in which each is strongest.

    Attributes:
        num_items: how many were seen.
        counts: (num_codes,) in how many of them the code is active.
        weight_sums: (num_codes,) sum of its weights.
        top: the strongest items of each code, by id.
        items: by id, what `describe` returned for each item that is in some top list.
        places: by (code, id), what `locate` returned.
    """

    def __init__(self, num_codes: int, top_k: int):
        self.num_items = 0
        self.counts = torch.zeros(num_codes, dtype=torch.int64)
        self.weight_sums = torch.zeros(num_codes, dtype=torch.float64)
        self.top = TopItems(num_codes, top_k)
        self.items: dict[int, Any] = {}
        self.places: dict[tuple[int, int], Any] = {}
        self._num_uses = Counter()

    def update(
        self,
        code_weights: torch.Tensor,
        ids: list[int],
        describe: Callable[[int], Any],
        locate: Callable[[int, list[int]], list[Any]],
    ) -> list[int]:
        """Take in a batch.

        Args:
            code_weights: (batch_size, num_codes), at least 0, on the CPU in float32.
            ids: one for each item; see `TopItems`.
            describe: called with the row of an item that enters a top list, the first time.
            locate: called with a row and the codes whose top lists it enters; returns one thing for each code.

        Returns:
            The ids of items that are no longer in any top list.
        """
        self.num_items += len(ids)
        self.counts += (code_weights > 0).sum(dim=0)
        self.weight_sums += code_weights.sum(dim=0, dtype=torch.float64)
        entered, left = self.top.update(code_weights, ids)
        codes_of_row: dict[int, list[int]] = {}
        for code, row in entered:
            codes_of_row.setdefault(row, []).append(code)
        for row, codes in codes_of_row.items():
            item = ids[row]
            if item not in self.items:
                self.items[item] = describe(row)
            self._num_uses[item] += len(codes)
            self.places.update(zip([(code, item) for code in codes], locate(row, codes), strict=True))
        for code, item in left:
            del self.places[code, item]
            self._num_uses[item] -= 1
        forgotten = sorted({item for _, item in left if self._num_uses[item] == 0})
        for item in forgotten:
            del self.items[item], self._num_uses[item]
        return forgotten

    @property
    def rates(self) -> torch.Tensor:
        """Share of items in which the code is active, (num_codes,)."""
        return self.counts.double() / max(self.num_items, 1)

    @property
    def mean_weights(self) -> torch.Tensor:
        """The code's weight on average over all items, (num_codes,)."""
        return self.weight_sums / max(self.num_items, 1)

    def top_of(self, code: int) -> list[tuple[int, float]]:
        """Ids and weights of the code's strongest items, the strongest first."""
        pairs = zip(self.top.ids[code].tolist(), self.top.weights[code].tolist(), strict=True)
        return [(item, weight) for item, weight in pairs if item >= 0]


class Sample:
    """Some items of a stream, every one with the same chance to be among them.

    Args:
        size: how many to keep.
        seed: of the draw.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.num_seen, self.items = size, 0, []
        self._random = random.Random(seed)

    def add(self, item: Any) -> None:
        self.num_seen += 1
        if len(self.items) < self.size:
            self.items.append(item)
        elif (place := self._random.randrange(self.num_seen)) < self.size:
            self.items[place] = item


def image_share(image: ModalityStatistics, text: ModalityStatistics) -> torch.Tensor:
    """Which modality a code belongs to: its mean weight in images by that in both; NaN for a dead code.

    Returns:
        (num_codes,) from 0, captions only, over 0.5, as strong in both, to 1, images only.
    """
    return image.mean_weights / (image.mean_weights + text.mean_weights)
