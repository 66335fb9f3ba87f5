# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
The contrastive loss, of one process and of the global batch of several.

Every process gathers the embeddings of all processes but compares only its own images with all captions, and its own
captions with all images: of the logits it holds `1 / world_size`, twice, not the whole matrix, which grows with the
square of the global batch. Loss and gradients are those of one process with the whole batch.
"""

import torch
import torch.distributed as dist
from torch import nn


def cap_logit_scale(logit_scale: torch.Tensor, logit_scale_max: float) -> torch.Tensor:
    r"""
    The logit scale that takes effect, `min(logit_scale, logit_scale_max)`.

    Args:
        logit_scale (`torch.Tensor`): natural logarithm of the factor on cosine similarities.
        logit_scale_max (`float`): the largest that takes effect.

    Returns:
        `torch.Tensor` of the shape of `logit_scale`. The cap does not stop the gradient, so a parameter above it can
        come down again.
    """
    return logit_scale - (logit_scale - logit_scale_max).clamp(min=0).detach()


def contrastive_logits(embeds: torch.Tensor, other_embeds: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    r"""
    Cosine similarities times the factor `exp(logit_scale)`.

    Args:
        embeds (`torch.Tensor` of shape `(batch_size, dim)`): of L2 norm 1.
        other_embeds (`torch.Tensor` of shape `(other_batch_size, dim)`): of L2 norm 1.
        logit_scale (`torch.Tensor` of shape `()`): natural logarithm of the factor, capped: [`cap_logit_scale`].

    Returns:
        `torch.Tensor` of shape `(batch_size, other_batch_size)`, in float32 for embeddings of half precision, under
        autocast too.
    """
    device, dtype = embeds.device, torch.promote_types(embeds.dtype, torch.float32)
    with torch.autocast(device.type, enabled=False):
        # Logits reach 100, where bfloat16 has steps of 0.5.
        return logit_scale.to(device, dtype).exp() * embeds.to(dtype) @ other_embeds.to(device, dtype).T


def contrastive_loss(
    logits_per_image: torch.Tensor, logits_per_text: torch.Tensor | None = None, first_pair: int = 0
) -> torch.Tensor:
    r"""
    Symmetric InfoNCE: the mean of two cross-entropies, of images among captions and of captions among images.

    Args:
        logits_per_image (`torch.Tensor` of shape `(batch_size, num_pairs)`): of images (rows) among all captions.
        logits_per_text (`torch.Tensor` of shape `(batch_size, num_pairs)`, *optional*):
            Of captions (rows) among all images; by default the transpose.
        first_pair (`int`, defaults to 0): row i is of pair `first_pair + i`.

    Returns:
        `torch.Tensor` of shape `()`, at least 0; `log(num_pairs)` for logits that are all equal.
    """
    if logits_per_text is None:
        logits_per_text = logits_per_image.T
    pairs = torch.arange(len(logits_per_image), device=logits_per_image.device) + first_pair
    image_loss = nn.functional.cross_entropy(logits_per_image, pairs)
    text_loss = nn.functional.cross_entropy(logits_per_text, pairs)
    return (image_loss + text_loss) / 2


def global_contrastive_loss(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""
    The contrastive loss of the pairs of all processes, each of which computes the logits of its own pairs.

    Args:
        image_embeds, text_embeds (`torch.Tensor` of shape `(batch_size, dim)`): this process's pairs, of L2 norm 1.
        logit_scale (`torch.Tensor` of shape `()`): as for [`contrastive_logits`]; the same on every process.

    Returns:
        The loss, the same on every process; the logits of this process's images among all captions, and those of its
        captions among all images, of shape `(batch_size, world_size * batch_size)`. Averaged over the processes, as
        DistributedDataParallel and FSDP do, the gradients of parameters are those of one process with all pairs. That
        of `logit_scale` is so on every process, averaged or not.

    Raises:
        ValueError: as [`gather_global_batch`] does.
    """
    # Each process computes a part of an embedding's gradient: in half precision their sum would be rounded.
    image_embeds, text_embeds = (
        embeds.to(torch.promote_types(embeds.dtype, torch.float32)) for embeds in (image_embeds, text_embeds)
    )
    all_image_embeds, all_text_embeds = gather_global_batch(image_embeds, text_embeds)
    if len(all_image_embeds) == len(image_embeds):  # one process
        logits_per_image = contrastive_logits(image_embeds, text_embeds, logit_scale)
        return contrastive_loss(logits_per_image), logits_per_image, logits_per_image.T
    logit_scale = _MeanGradient.apply(logit_scale)
    logits_per_image = contrastive_logits(image_embeds, all_text_embeds, logit_scale)
    logits_per_text = contrastive_logits(text_embeds, all_image_embeds, logit_scale)
    loss = contrastive_loss(logits_per_image, logits_per_text, first_pair=dist.get_rank() * len(image_embeds))
    return _MeanValue.apply(loss), logits_per_image, logits_per_text


def gather_global_batch(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    The embeddings of all processes, with gradients; on one process those given. Pair i is image i and caption i.

    Args:
        image_embeds, text_embeds (`torch.Tensor` of shape `(batch_size, dim)`): this process's pairs.

    Returns:
        Two `torch.Tensor` of shape `(world_size * batch_size, dim)`, ordered by rank. The gradient of what was given
        is the sum over what all processes compute of it.

    Raises:
        ValueError: there are not as many captions as images, or not as many pairs as on another process. Every process
            raises it, so none is left waiting.
    """
    sizes = [[len(image_embeds), len(text_embeds)]]
    is_distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if is_distributed:
        local = torch.tensor(sizes[0], device=image_embeds.device)
        gathered = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, local)
        sizes = torch.stack(gathered).tolist()
    for rank, (num_images, num_texts) in enumerate(sizes):
        if num_images != num_texts:
            raise ValueError(
                f"Training needs as many captions as images, got {num_texts} and {num_images} on process {rank}."
            )
    if any(size != sizes[0] for size in sizes):
        raise ValueError(f"Training needs as many pairs on every process, got {[size for size, _ in sizes]}.")
    if not is_distributed:
        return image_embeds, text_embeds
    return _GatherWithGradient.apply(image_embeds), _GatherWithGradient.apply(text_embeds)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: torch.Tensor) -> torch.Tensor:
        gathered = local.new_empty(dist.get_world_size() * len(local), *local.shape[1:])
        dist.all_gather_into_tensor(gathered, local.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        # What is wanted is the gradient of the mean of the processes' losses. The sum here makes it world_size times
        # that, and the averaging of parameters' gradients takes the factor away again.
        local = grad.new_empty(len(grad) // dist.get_world_size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(local, grad.contiguous())
        return local


def _mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    mean = value / dist.get_world_size()
    dist.all_reduce(mean)
    return mean


class _MeanValue(torch.autograd.Function):
    """The mean of the processes' values; the gradient stays that of this process's own."""

    @staticmethod
    def forward(ctx, value: torch.Tensor) -> torch.Tensor:
        return _mean_over_processes(value)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return grad


class _MeanGradient(torch.autograd.Function):
    """A value as it is; its gradient is the mean of the processes' gradients.

    FSDP, which cannot shard a scalar, leaves the gradient of logit_scale as it is on each process.
    """

    @staticmethod
    def forward(ctx, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return _mean_over_processes(grad)
