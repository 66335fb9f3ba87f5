# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
The loss of several micro-batches as if they were one batch, with the memory of one micro-batch.

A contrastive loss compares every pair with all others, so it is no mean over micro-batches, and to add up their
gradients, which is right for other losses, silently trains with fewer negatives. Cached gradients are exact: embed all
micro-batches without a graph, take the loss of all embeddings and its gradient with respect to them, then embed every
micro-batch once more, with a graph, and send its share of that gradient back.

Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021 (arXiv
2101.06983).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def cached_gradient_losses(
    model: nn.Module,
    embed: Callable[[Any], tuple[torch.Tensor, ...]],
    compare: Callable[..., torch.Tensor],
    micro_batches: list,
) -> Iterator[torch.Tensor]:
    """
    One scalar for each micro-batch; what they send back adds up to the gradient of the loss over all of them.

    Args:
        model: what `embed` runs, in training mode. Random numbers (dropout) are the same in both passes. Batch
            norms normalise by the statistics of a micro-batch; their running statistics are updated once.
        embed: gives the tensors of a micro-batch that the loss depends on, rows first.
        compare: the loss, a scalar, of these tensors, each with the rows of all micro-batches.
        micro_batches: what `embed` takes, at least one.

    Yields:
        Scalars, to be sent back one after the other, each before the next is asked for. Their values add up to the
        loss.
    """
    random_states, parts = [], []
    with torch.no_grad(), frozen_running_statistics(model):
        for micro_batch in micro_batches:
            random_states.append(_RandomState())
            parts.append(embed(micro_batch))
    wholes = [torch.cat(tensors).requires_grad_() for tensors in zip(*parts, strict=True)]
    loss = compare(*wholes)
    gradients = torch.autograd.grad(loss, wholes)
    sizes = [[len(tensor) for tensor in tensors] for tensors in zip(*parts, strict=True)]
    shares = zip(*(gradient.split(size) for gradient, size in zip(gradients, sizes, strict=True)), strict=True)
    for micro_batch, random_state, share in zip(micro_batches, random_states, shares, strict=True):
        with random_state.replayed():
            tensors = embed(micro_batch)
        surrogate = sum((tensor * gradient).sum() for tensor, gradient in zip(tensors, share, strict=True))
        # The surrogate's gradient, the loss's value.
        yield surrogate - surrogate.detach() + loss.detach() / len(micro_batches)


@contextmanager
def frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms in training mode that normalise by the batch and do not update their running statistics."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def current_cuda_device() -> list[int]:
    """The device whose random numbers a forward pass draws, beside the CPU's; empty without CUDA."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


class _RandomState:
    """The state of torch's random number generators, CPU and the current CUDA device, when it was made."""

    def __init__(self):
        self.devices = current_cuda_device()
        self.cpu_state = torch.get_rng_state()
        self.cuda_states = [torch.cuda.get_rng_state(device) for device in self.devices]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.cpu_state)
            for device, state in zip(self.devices, self.cuda_states, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
