# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Do a code's strongest items have something in common, and in what words?"""

import math
import random
import re
from collections import Counter
from dataclasses import dataclass
from itertools import combinations


_STOP_WORDS = frozenset(
    "a an and are as at be by for from has have in into is it its of on or out over that the their there this to "
    "under up was were with".split()
)


@dataclass(frozen=True)
class Label:
    """What is known of an item: the distinct words of its caption, and its category where the data set has one."""

    words: frozenset[str]
    category: str | None = None


@dataclass
class Coherence:
    """How much more alike a code's strongest items are than random ones.

    Attributes:
        share: share of pairs of its items that are alike.
        baseline: the mean of that share over random draws of as many items.
        p_value: share of draws, the code's own counted in, that reach `share`.
    """

    share: float
    baseline: float
    p_value: float


def content_words(caption: str) -> frozenset[str]:
    """The distinct words of a caption in lower case, without digits and the most common English function words."""
    return frozenset(re.findall(r"[^\W\d_]{2,}", caption.lower())) - _STOP_WORDS


def are_alike(first: Label, second: Label) -> bool:
    """Of the same category; without categories, with a word in common."""
    if first.category is not None:
        return first.category == second.category
    return not first.words.isdisjoint(second.words)


def share_alike(labels: list[Label]) -> float:
    """Share of all pairs that are alike; of at least two labels."""
    pairs = list(combinations(labels, 2))
    return sum(are_alike(first, second) for first, second in pairs) / len(pairs)


class CoherenceTest:
    """Compares items with random ones, by a permutation test.

    Args:
        population: labels of random items.
        num_draws: how many random draws to compare with.
        seed: of the draws.
    """

    def __init__(self, population: list[Label], num_draws: int, seed: int):
        self.population, self.num_draws, self.seed = population, num_draws, seed
        self._draws: dict[int, list[float]] = {}

    def __call__(self, labels: list[Label]) -> Coherence | None:
        """None for fewer than two items, or more than the population has."""
        size = len(labels)
        if not 2 <= size <= len(self.population):
            return None
        if size not in self._draws:
            generator = random.Random(self.seed)
            self._draws[size] = [share_alike(generator.sample(self.population, size)) for _ in range(self.num_draws)]
        draws, share = self._draws[size], share_alike(labels)
        num_reaching = sum(draw >= share for draw in draws)
        return Coherence(share, sum(draws) / len(draws), (1 + num_reaching) / (1 + len(draws)))


def distinctive_words(captions: list[frozenset[str]], background: Counter, num_words: int) -> list[str]:
    """The words that set a few captions apart, by their log-odds with a Dirichlet prior.

    A word's log-odds among the captions is compared with that in the background, in units of its standard deviation;
    the prior has the background's shares and the weight of as many words as the captions have. Only words of at least
    two captions count.

    Args:
        captions: the distinct words of each caption.
        background: in how many captions of a random sample each word is.
        num_words: how many to return at most.

    Returns:
        The words, the most distinctive first.

    Source: Monroe, Colaresi, Quinn, "Fightin' Words", Political Analysis 2008, equations 15 to 22.
    """
    counts = Counter(word for words in captions for word in words)
    total, background_total = counts.total(), background.total()
    scores = {}
    for word, count in counts.items():
        if count < 2:
            continue
        # A word that the sample missed counts as half seen; another half keeps the odds finite.
        others = max(background[word], 0.5)
        prior = total * others / max(background_total, 1)
        odds = (count + prior) / (2 * total - count - prior + 0.5)
        background_odds = (others + prior) / (background_total + total - others - prior + 0.5)
        spread = math.sqrt(1 / (count + prior) + 1 / (others + prior))
        scores[word] = (math.log(odds) - math.log(background_odds)) / spread
    best = sorted(scores, key=lambda word: (-scores[word], word))
    return [word for word in best if scores[word] > 0][:num_words]
