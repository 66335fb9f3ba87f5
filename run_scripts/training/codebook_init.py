# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""A codebook that starts where the tokens of the training data are."""

import logging
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, Subset

from modeling_fdt import FDTModel
from run_scripts.training.code_health import collect_queries


logger = logging.getLogger(__name__)

# A pair brings dozens of tokens, and a codebook of 16,384 codes needs several tokens for each.
NUM_PAIRS = 4096


@torch.no_grad()
def start_codebook(model: FDTModel, dataset: Dataset, collator: Callable, batch_size: int, seed: int) -> None:
    """
    Put the codes at the centres of clusters of token queries. To be called on all processes; the first one computes.

    Args:
        model: new, on the device of training.
        dataset: pairs by number; `NUM_PAIRS` of them, drawn at random, are used.
        collator: makes inputs for the model of a list of pairs.
        batch_size: of the pairs that are embedded at once.
        seed: of the draw and of k-means.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: the pairs have fewer tokens than there are codes.
    """
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            from modeling_fdt.kmeans import kmeans_codebook
        except ImportError as error:
            raise ImportError("codebook_init='kmeans' needs scikit-learn: pip install scikit-learn") from error
        chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:NUM_PAIRS]
        batches = DataLoader(Subset(dataset, chosen.tolist()), batch_size, collate_fn=collator)
        queries = [collect_queries(model, inputs.to(model.device)).cpu() for inputs in batches]
        model.codebook.copy_(kmeans_codebook(torch.cat(queries), model.config.codebook_size, seed))
        logger.info("The codes are centres of %d token queries of %d pairs.", sum(map(len, queries)), len(chosen))
    if dist.is_initialized():
        dist.broadcast(model.codebook, src=0)
