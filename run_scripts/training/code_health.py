# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
Codes in use and codes that are dead: what is counted in training, and two remedies.

The remedies, new codes in place of dead ones and a reward for the entropy of code usage, are not the paper's.
"""

import torch
import torch.distributed as dist
from torch import nn

from modeling_fdt import FDTModel
from run_scripts.training.cached_gradients import current_cuda_device, frozen_running_statistics


class CodeUsage:
    """For every code the number of optimiser steps since any image or caption used it.

    Args:
        codebook_size: number of codes.
        device: where the steps are counted.
    """

    def __init__(self, codebook_size: int, device: torch.device):
        self.steps_unused = torch.zeros(codebook_size, dtype=torch.int64, device=device)  # on this process

    def begin_step(self) -> None:
        self.steps_unused += 1

    def observe(self, *code_weights: torch.Tensor) -> None:
        """Take note of code weights, each (batch_size, codebook_size); any number of times in a step."""
        for weights in code_weights:
            self.steps_unused.masked_fill_((weights > 0).any(dim=0), 0)

    def synchronize(self) -> torch.Tensor:
        """The steps since any process saw a code used, (codebook_size,); to be called on all processes."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.steps_unused, dist.ReduceOp.MIN)
        return self.steps_unused


@torch.no_grad()
def reseed_codes(
    model: FDTModel, optimizer: torch.optim.Optimizer, inputs: dict, codes: torch.Tensor, seed: int
) -> None:
    """Put new codes in place of some: queries of this batch's patches and words, drawn at random.

    A query keeps its direction and gets the mean length of the codes, so that it competes with them on equal terms.
    All processes take what the first one draws. What the optimiser remembers of the old codes is set to 0.

    Args:
        model: not sharded.
        optimizer: holds `model.codebook`.
        inputs: a batch for the model.
        codes: (num_codes,) indices, the same on all processes.
        seed: of the draw.
    """
    if len(codes) == 0:
        return
    queries = collect_queries(model, inputs)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(queries), (len(codes),), generator=generator)
    if len(codes) <= len(queries):
        drawn = torch.randperm(len(queries), generator=generator)[: len(codes)]
    codebook = model.codebook
    length = codebook.norm(dim=-1).mean()
    new_codes = nn.functional.normalize(queries[drawn.to(queries.device)], dim=-1).to(codebook.dtype) * length
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(new_codes, src=0)
    codebook[codes] = new_codes
    for moment in optimizer.state[codebook].values():
        if torch.is_tensor(moment) and moment.shape == codebook.shape:
            moment[codes] = 0


@torch.no_grad()
def collect_queries(model: FDTModel, inputs: dict) -> torch.Tensor:
    """What patches and valid words of a batch are compared to the codes with, (num_tokens, codebook_dim)."""
    with torch.random.fork_rng(current_cuda_device()), frozen_running_statistics(model):
        outputs = model(**{**inputs, "return_loss": False})
    patches, words = model.get_token_queries(outputs, inputs.get("pixel_values"))
    attention_mask = inputs.get("attention_mask")
    words = words.flatten(0, 1) if attention_mask is None else words[attention_mask.bool()]
    return torch.cat([patches.flatten(0, 1), words]).float()
