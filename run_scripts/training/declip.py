# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
DeCLIP's objective for FDT: what it adds to the trainer, and to the model while that trains.

A trainer's add-on, not a model class around `FDTModel`: what trains is an FDTModel itself, with the heads as one more
child. So everything that the trainer does to a model (freezing, new codes, the clamp, weight decay, DDP) meets the
names that it knows, and what is saved is an FDTModel by its own class, without the heads, whose names stand in
`_keys_to_ignore_on_save`. Heads and queue have a file of their own in every checkpoint.

Every term is that of the global batch, over processes and micro-batches, batch norm of the heads included: the heads
run on the embeddings of all pairs, where losses are computed. They are small beside the towers.
"""

import logging
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call

from modeling_fdt import FDTModel
from modeling_fdt.loss_fdt import gather_global_batch
from modeling_fdt.towers_fdt import get_hidden_size
from run_scripts.training.arguments import ObjectiveArguments
from run_scripts.training.declip_losses import (
    FeatureQueue,
    masked_language_loss,
    multi_view_loss,
    nearest_neighbor_loss,
    simsiam_loss,
    sum_token_losses,
)
from run_scripts.training.trainer import FDTTrainer


logger = logging.getLogger(__name__)

# In a checkpoint: the heads and the queue. `conversion` writes the same file for checkpoints of the original.
DECLIP_NAME = "declip.safetensors"
_QUEUE, _POSITION = "queue.features", "queue.position"

# Of the original: what the projector and the predictor map to, and the predictor's bottleneck.
_PROJECTION_DIM, _BOTTLENECK_DIM = 1024, 512


class SimSiamHead(nn.Module):
    """SimSiam's projector and predictor on the embeddings of images before they are scaled to length 1.

    Args:
        dim: size of the embeddings.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(dim, _PROJECTION_DIM),
            nn.BatchNorm1d(_PROJECTION_DIM),
            nn.ReLU(),
            nn.Linear(_PROJECTION_DIM, _PROJECTION_DIM),
            nn.BatchNorm1d(_PROJECTION_DIM),
            nn.ReLU(),
            nn.Linear(_PROJECTION_DIM, _PROJECTION_DIM),
            nn.BatchNorm1d(_PROJECTION_DIM),
        )
        self.predictor = nn.Sequential(
            nn.Linear(_PROJECTION_DIM, _BOTTLENECK_DIM),
            nn.BatchNorm1d(_BOTTLENECK_DIM),
            nn.ReLU(),
            nn.Linear(_BOTTLENECK_DIM, _PROJECTION_DIM),
        )

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The projection and the prediction, both (batch_size, 1024), of features (batch_size, dim)."""
        projection = self.projector(features)
        return projection, self.predictor(projection)


class DeclipHeads(nn.Module):
    """What DeCLIP trains beside the model, and needs no longer once it is trained.

    Args:
        model: whose sizes the heads have.
    """

    def __init__(self, model: FDTModel):
        super().__init__()
        text_config = model.config.text_config
        self.simsiam = SimSiamHead(model.config.codebook_dim)
        self.token_classifier = nn.Linear(get_hidden_size(text_config), text_config.vocab_size)


class DeclipTrainer(FDTTrainer):
    """FDTTrainer with DeCLIP's loss, for the batches of [`TwoViewCollator`].

    Args:
        model: an FDTModel; the heads are added to it as `declip`.
        objective: weights of the terms, size of the queue, and the heads to start from.

    Raises:
        ValueError: the model is no FDTModel or sharded, or the heads to start from are not those of the model.
    """

    views_per_pair = 2

    def __init__(self, model: FDTModel, *args, objective: ObjectiveArguments, **kwargs):
        if not isinstance(model, FDTModel):
            raise ValueError(f"objective='declip' trains an FDTModel, got a {type(model).__name__}")
        model.declip = DeclipHeads(model)
        model._keys_to_ignore_on_save = [f"declip.{name}" for name in model.declip.state_dict()]
        super().__init__(model, *args, **kwargs)
        if self.is_fsdp_enabled:
            # Outside the model's own forward, where the heads run, their parameters and the codebook are sharded.
            raise ValueError("objective='declip' cannot be sharded: train without FSDP, on DDP")
        self.objective = objective

    # The loss

    def _begin_step(self, inputs: dict) -> None:
        super()._begin_step({name: value for name, value in inputs.items() if name != "token_labels"})

    def _embed(self, model: nn.Module, inputs: dict) -> tuple[torch.Tensor, ...]:
        if "token_labels" not in inputs:  # in evaluation
            return super()._embed(model, inputs)
        inputs = dict(inputs)
        labels = inputs.pop("token_labels")
        outputs = model(**inputs, return_loss=False)
        if torch.is_grad_enabled():
            self._count(outputs)
        heads = self._bare_model.declip
        masked_words = outputs.text_model_output.last_hidden_state[: len(labels)]
        sums, counts = sum_token_losses(masked_words, labels, heads.token_classifier)
        images = torch.cat([outputs.image_embeds.float(), self._sum_codes(outputs.image_code_weights).float()], dim=1)
        texts = outputs.text_embeds.float().chunk(2)
        return (
            torch.cat(images.chunk(2), dim=1),
            torch.cat([*texts, sums[:, None], counts[:, None]], dim=1),
            self._capped_logit_scale(),
            # Used in `_compare`, so the gradient of the loss with respect to them is cached like all others.
            *(parameter[None] for parameter in heads.simsiam.parameters()),
            *self._mean_code_weights(outputs),
        )

    def _sum_codes(self, code_weights: torch.Tensor) -> torch.Tensor:
        """Embeddings as they are before they are scaled to length 1."""
        codebook = self._bare_model.codebook
        sums = code_weights.to(codebook.dtype) @ codebook
        if self._bare_model.config.grounding_activation == "sigmoid":  # Official: a mean, as weights sum to anything.
            return sums / code_weights.sum(dim=-1, keepdim=True)
        return sums

    def _compare(self, images, texts, logit_scales, *others) -> torch.Tensor:
        simsiam, logit_scale = self._bare_model.declip.simsiam, logit_scales.mean()
        names = [name for name, _ in simsiam.named_parameters()]
        parameters = {name: values.mean(dim=0) for name, values in zip(names, others, strict=False)}
        dim = self.queue.features.shape[1]
        # Every process searches the queue for its own captions; neighbours are gathered like embeddings.
        neighbors = [self.queue.find_nearest(view) for view in texts[:, : 2 * dim].split(dim, dim=1)]
        images, texts = gather_global_batch(images, torch.cat([texts, *neighbors], dim=1))
        first_image, first_sum, second_image, second_sum = images.split(dim, dim=1)
        masked, edited, sums, counts, *neighbors = texts.split([dim, dim, 1, 1, dim, dim], dim=1)
        heads = [functional_call(simsiam, parameters, (features,)) for features in (first_sum, second_sum)]
        image_views = (first_image, second_image)
        terms = {
            "multi_view": multi_view_loss(image_views, (masked, edited), logit_scale),
            "simsiam": simsiam_loss(*zip(*heads, strict=True)),
            "nearest_neighbor": nearest_neighbor_loss(image_views, neighbors, logit_scale),
            "masked_language": masked_language_loss(sums, counts),
        }
        self._terms = {name: term.detach() for name, term in terms.items()}
        self.queue.enqueue(torch.cat([edited, masked]))
        loss = sum(getattr(self.objective, f"{name}_weight") * term for name, term in terms.items())
        return self._reward_usage(loss, others[len(names) :])

    def _training_numbers(self) -> dict[str, float]:
        terms = {f"{name}_loss": term.item() for name, term in self._terms.items()}
        return super()._training_numbers() | terms

    # Checkpoints

    def begin_run(self, checkpoint: str | None) -> None:
        super().begin_run(checkpoint)
        dim = self.model.config.codebook_dim
        self.queue = FeatureQueue(self.objective.queue_size, dim, self.args.seed, self.args.device)
        path = self.objective.declip_heads if checkpoint is None else Path(checkpoint) / DECLIP_NAME
        if path is not None:
            load_declip_state(path, self.model.declip, self.queue)

    def _issue_warnings_after_load(self, load_result) -> None:
        # `begin_run` has read the heads, which a checkpoint holds in a file of their own.
        missing = [name for name in load_result.missing_keys if not name.startswith("declip.")]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _save_rng_state(self, output_dir: str) -> None:
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_declip_state(Path(output_dir) / DECLIP_NAME, self._bare_model.declip, self.queue)
        super()._save_rng_state(output_dir)


def save_declip_state(path: Path, heads: DeclipHeads, queue: FeatureQueue) -> None:
    """Write heads and queue, which is the same on every process, to a file."""
    position = torch.tensor(queue.position)
    tensors = {**heads.state_dict(), _QUEUE: queue.features, _POSITION: position}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def load_declip_state(path: str | Path, heads: DeclipHeads, queue: FeatureQueue) -> None:
    """Read heads, and the queue if the file has one: checkpoints of the original need not.

    Raises:
        ValueError: the file cannot be read, or names or shapes are not those of the heads and the queue.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"declip_heads={str(path)!r} cannot be read: {error}") from error
    expected = OrderedDict((name, tensor.shape) for name, tensor in heads.state_dict().items())
    if _QUEUE in tensors or _POSITION in tensors:
        expected |= {_QUEUE: queue.features.shape, _POSITION: torch.Size()}
    else:
        logger.info("%s has no queue: it begins with random directions.", path)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = [
        f"{name}: {_tell_shape(found.get(name))}, not {_tell_shape(expected.get(name))}"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise ValueError(f"declip_heads={str(path)!r} does not fit the model and queue_size: {'; '.join(wrong)}")
    if _QUEUE in tensors:
        position = tensors.pop(_POSITION).item()
        if not 0 <= position < len(queue.features):
            raise ValueError(f"declip_heads={str(path)!r} has a queue.position of {position}")
        queue.features, queue.position = tensors.pop(_QUEUE).to(queue.features), position
    heads.load_state_dict(tensors)


def _tell_shape(shape: torch.Size | None) -> str:
    return "nothing" if shape is None else str(tuple(shape))
