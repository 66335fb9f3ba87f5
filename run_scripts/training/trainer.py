# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What contrastive training adds to transformers' Trainer."""

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import IterableDataset, Sampler
from transformers import CLIPModel, EvalPrediction, PreTrainedModel, TrainingArguments
from transformers.utils import ModelOutput

from modeling_fdt.loss_fdt import (
    cap_logit_scale,
    contrastive_logits,
    contrastive_loss,
    gather_global_batch,
    global_contrastive_loss,
)
from run_scripts.data.batches import DistinctBatchSampler, EndlessSampler
from run_scripts.data.scenes import SceneDataset
from run_scripts.evaluation.code_usage import count_active, usage_entropy
from run_scripts.evaluation.retrieval import pair_retrieval
from run_scripts.training.arguments import FDTTrainingOptions
from run_scripts.training.cached_gradients import cached_gradient_losses
from run_scripts.training.callbacks import LogitScaleClamp, TargetActiveCodes, TemperatureSchedule
from run_scripts.training.code_health import CodeUsage, reseed_codes
from run_scripts.training.freezing import freeze_parts, keep_frozen_in_evaluation
from run_scripts.training.reproducible import ReproducibleTrainer


logger = logging.getLogger(__name__)

# Beside Trainer's own files in a checkpoint: what `FDTTrainer` counts.
PROGRESS_NAME = "progress.pt"

# Of models whose configuration has no `logit_scale_max`: CLIP was trained with factors up to 100.
CLIP_LOGIT_SCALE_MAX = math.log(100)

# What arguments must be of a model that has no codes.
_DEFAULTS_WITHOUT_CODES = {
    "temperature_decay": None,
    "target_active_codes": None,
    "reseed_dead_codes": False,
    "usage_entropy_weight": 0,
}


@dataclass
class FDTTrainingArguments(FDTTrainingOptions, TrainingArguments):
    """transformers' own, with the defaults that a contrastive loss over image-text pairs needs, and what FDT adds."""

    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads the columns."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "The loss depends on the batch size."})
    ddp_find_unused_parameters: bool = field(default=False, metadata={"help": "Every parameter takes part."})

    def __post_init__(self):
        if self.deepspeed is not None or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
            raise ValueError(
                "DeepSpeed is not supported: it keeps copies of the parameters, which the clamp of logit_scale does "
                "not reach; use FSDP2 (run_scripts/configs/accelerate/fsdp2.yaml)"
            )
        TrainingArguments.__post_init__(self)
        for name in ("temperature_decay", "target_active_codes"):
            if getattr(self, name) is not None and self.load_best_model_at_end:
                raise ValueError(f"load_best_model_at_end restores weights alone, not the temperature of {name}")
        FDTTrainingOptions.__post_init__(self)


def find_layers_to_shard(model: PreTrainedModel) -> list[str]:
    """The classes of layers that FSDP gathers one at a time: those that the towers name, and the groundings.

    Args:
        model: a two-tower model.

    Returns:
        Names of classes that the model has, sorted. accelerate refuses others, and a tower may name layers of a
        sibling: SigLIP's vision tower names the embeddings of its text tower.
    """
    token_embedding = model.get_input_embeddings()
    return sorted(
        {
            type(module).__name__
            for module in model.modules()
            # accelerate shards the embedding of tokens by itself: it cannot be in two groups.
            if type(module).__name__ in model._no_split_modules and token_embedding not in module.modules()
        }
    )


class FDTTrainer(ReproducibleTrainer):
    """Trains a two-tower model (FDT, CLIP, ...) with the contrastive loss of the global batch.

    The global batch are the pairs of all processes and of all `gradient_accumulation_steps` micro-batches. The model
    is anything whose `forward` gives `image_embeds` and `text_embeds` of length 1 and that has a `logit_scale`.

    Args:
        distinct_column: column of `train_dataset` whose values must differ within a global batch.

    Raises:
        ValueError: an argument asks for codes or a temperature, and the model has none.
    """

    # The reported loss is that of the whole batch already: Trainer shall not divide it.
    loss_is_scaled_for_ga = True

    # How often the model sees a pair in one step.
    views_per_pair = 1

    def __init__(self, *args, distinct_column: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.distinct_column, self._own_sampler = distinct_column, None
        self._check_arguments()
        if self.args.freeze is not None:
            freeze_parts(self.model, self.args.freeze)
            keep_frozen_in_evaluation(self.model)
        logit_scale_range = self.args.logit_scale_min, self.args.logit_scale_max
        if not hasattr(self.model.config, "logit_scale_max"):
            # What the loss caps, the model itself (CLIP) does not: its parameter must not exceed the cap.
            logit_scale_range = logit_scale_range[0], min(logit_scale_range[1] or math.inf, self._logit_scale_cap)
        if logit_scale_range != (None, None):
            self.add_callback(LogitScaleClamp(*logit_scale_range))
        if self.args.temperature_decay is not None:
            self.add_callback(
                TemperatureSchedule(
                    self.args.temperature_decay, self.args.temperature_decay_steps, self.args.temperature_min or 0.0
                )
            )
        self._target_active_codes = None
        if self.args.target_active_codes is not None:
            self._target_active_codes = TargetActiveCodes(self.args.target_active_codes)
            self.add_callback(self._target_active_codes)

    def _check_arguments(self) -> None:
        for name, default in _DEFAULTS_WITHOUT_CODES.items():
            value = getattr(self.args, name)
            if value != default and not hasattr(self.model.config, "codebook_size"):
                raise ValueError(f"{name}={value} is for models with codes, got a {type(self.model).__name__}")
        if self.args.reseed_dead_codes and self.is_fsdp_enabled:
            raise ValueError("reseed_dead_codes needs the whole codebook on every process, which FSDP shards")

    # The loss

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        micro_batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if isinstance(self.train_dataset, IterableDataset):
            # A stream may end within a step, and where processes read on their own on one before the other: all of
            # them end the epoch with the last step that is whole everywhere.
            counts = self.accelerator.gather(torch.tensor([len(micro_batches)], device=device))
            if counts.min() < num_batches:
                micro_batches, self.control.should_epoch_stop = [], True
        self._micro_batches, self._losses = micro_batches, None
        return micro_batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if self._losses is None:  # the first micro-batch of a step
            self._begin_step(inputs)
            if len(self._micro_batches) == 1:
                return self._compare(*self._embed(model, inputs))
            self._losses = cached_gradient_losses(
                model,
                lambda micro_batch: self._embed(model, self._prepare_inputs(micro_batch)),
                self._compare,
                self._micro_batches,
            )
        return next(self._losses)

    def _begin_step(self, inputs: dict) -> None:
        if self.code_usage is None:
            return
        step = self.state.global_step
        if self.args.reseed_dead_codes and step > 0 and step % self.args.dead_code_steps == 0:
            steps_unused = self.code_usage.synchronize()
            dead = (steps_unused >= self.args.dead_code_steps).nonzero()[:, 0]
            reseed_codes(self._bare_model, self.optimizer, inputs, dead, seed=self.args.seed + step)
            steps_unused[dead] = 0
        self.code_usage.begin_step()

    def _embed(self, model: nn.Module, inputs: dict) -> tuple[torch.Tensor, ...]:
        outputs = model(**{**inputs, "return_loss": False})
        if torch.is_grad_enabled():
            self._count(outputs)
        tensors = (outputs.image_embeds.float(), outputs.text_embeds.float(), self._capped_logit_scale())
        return (*tensors, *self._mean_code_weights(outputs))

    def _capped_logit_scale(self) -> torch.Tensor:
        return cap_logit_scale(self._bare_model.logit_scale.reshape(1), self._logit_scale_cap)

    def _mean_code_weights(self, outputs: ModelOutput) -> tuple[torch.Tensor, ...]:
        if self.args.usage_entropy_weight == 0:
            return ()
        weights = (outputs.image_code_weights, outputs.text_code_weights)
        return tuple(weight.float().mean(dim=0, keepdim=True) for weight in weights)

    def _compare(self, image_embeds, text_embeds, logit_scales, *mean_code_weights) -> torch.Tensor:
        loss, *_ = global_contrastive_loss(image_embeds, text_embeds, logit_scales.mean())
        return self._reward_usage(loss, mean_code_weights)

    def _reward_usage(self, loss: torch.Tensor, mean_code_weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if mean_code_weights:
            entropies = [usage_entropy(means.mean(dim=0)) for means in gather_global_batch(*mean_code_weights)]
            loss = loss - self.args.usage_entropy_weight * sum(entropies) / 2
        return loss

    @property
    def _logit_scale_cap(self) -> float:
        return getattr(self._bare_model.config, "logit_scale_max", CLIP_LOGIT_SCALE_MAX)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The contrastive loss of this process's pairs and, unless the loss is all, their embeddings."""
        with torch.no_grad(), self.compute_loss_context_manager():
            image_embeds, text_embeds, logit_scale, *_ = self._embed(model, self._prepare_inputs(inputs))
            loss = contrastive_loss(contrastive_logits(image_embeds, text_embeds, logit_scale))
        return loss, None if prediction_loss_only else (image_embeds, text_embeds), ()

    @property
    def _bare_model(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model)

    # Order of the data, parameters and their optimiser

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if self._own_sampler is not None:
            self._own_sampler.set_epoch(epoch)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        # Trainer has no public place for a sampler.
        dataset = self.train_dataset if train_dataset is None else train_dataset
        block_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        if isinstance(dataset, SceneDataset):
            self._own_sampler = EndlessSampler(len(dataset), block_size)
        elif self.distinct_column is not None:
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            self._own_sampler = DistinctBatchSampler(dataset[self.distinct_column][:], block_size, seed)
        else:
            return super()._get_train_sampler(train_dataset)
        return self._own_sampler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # Trainer itself spares biases and layer norms.
        spared = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
        spared |= {name for name, _ in model.named_parameters() if name.split(".")[-1] == "logit_scale"}
        return [name for name in super().get_decay_parameter_names(model) if name not in spared]

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version == 2:
            plugin = self.accelerator.state.fsdp_plugin
            # FSDP2 cannot shard a scalar; global_contrastive_loss gives its whole gradient on every process.
            plugin.ignored_modules = [nn.ParameterList([self.model.logit_scale])]
            if isinstance(self.model, CLIPModel):
                # accelerate asks for the embedding of tokens, which CLIP, unlike FDT, does not find in its text tower.
                self.model.get_input_embeddings = self.model.text_model.get_input_embeddings
            if plugin.transformer_cls_names_to_wrap is None:
                plugin.transformer_cls_names_to_wrap = find_layers_to_shard(self.model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.is_fsdp_enabled:
            # Sharded parameters and plain ones cannot be updated in one call.
            logit_scale = self.model.logit_scale
            for group in optimizer.param_groups[:]:
                if any(parameter is logit_scale for parameter in group["params"]):
                    group["params"] = [parameter for parameter in group["params"] if parameter is not logit_scale]
                    optimizer.add_param_group({**group, "params": [logit_scale]})
        return optimizer

    # What is logged

    def _count(self, outputs: ModelOutput) -> None:
        self._num_pairs += len(outputs.image_embeds) // self.views_per_pair
        if self.code_usage is not None:
            self._code_weights = outputs.image_code_weights.detach(), outputs.text_code_weights.detach()
            self.code_usage.observe(*self._code_weights)
            if self._target_active_codes is not None:
                self._target_active_codes.observe(self._code_weights[0])

    def _take_pairs(self) -> None:
        """Add the pairs that all processes have seen since the last call to `pairs_seen`."""
        self.pairs_seen += self.accelerator.reduce(torch.tensor(self._num_pairs, device=self.args.device)).item()
        self._num_pairs = 0

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs.update(self._training_numbers())
        super().log(logs, *args, **kwargs)

    def _training_numbers(self) -> dict[str, float]:
        self._take_pairs()
        now = time.perf_counter()
        last_pairs, last_time = self._logged
        self._logged = self.pairs_seen, now
        numbers = {
            "pairs_seen": self.pairs_seen,
            "pairs_per_second": (self.pairs_seen - last_pairs) / (now - last_time),
            "logit_scale": self._bare_model.logit_scale.item(),
        }
        if self.code_usage is not None:
            active = torch.stack([count_active(weights) for weights in self._code_weights])
            active = self.accelerator.reduce(active, "mean").tolist()
            numbers["active_codes_per_image"], numbers["active_codes_per_caption"] = active
            numbers["dead_codes"] = (self.code_usage.synchronize() >= self.args.dead_code_steps).sum().item()
            numbers["temperature"] = self._bare_model.config.grounding_temperature
        return numbers

    # Checkpoints

    def begin_run(self, checkpoint: str | None) -> None:
        self.pairs_seen = self._num_pairs = 0
        self.code_usage = None
        if hasattr(self.model.config, "codebook_size"):
            self.code_usage = CodeUsage(self.model.config.codebook_size, self.args.device)
        if checkpoint is not None:
            progress = torch.load(Path(checkpoint) / PROGRESS_NAME, map_location="cpu", weights_only=True)
            self.pairs_seen = progress["pairs_seen"]
            if self.code_usage is not None:
                self.code_usage.steps_unused = progress["steps_unused"].to(self.args.device)
        self._logged = self.pairs_seen, time.perf_counter()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # FSDP2 gives the model a class of its own, made at run time in a file of torch. `save_pretrained` takes code
        # and the entry in `auto_map` from the class, so the model has its former one while it is saved.
        sharded_class = type(self.model)
        self.model.__class__ = next(cls for cls in sharded_class.__mro__ if not issubclass(cls, FSDPModule))
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.model.__class__ = sharded_class

    def _save_rng_state(self, output_dir: str) -> None:
        self._take_pairs()
        progress = {"pairs_seen": self.pairs_seen}
        if self.code_usage is not None:
            progress["steps_unused"] = self.code_usage.synchronize()
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            torch.save(progress, Path(output_dir) / PROGRESS_NAME)
        super()._save_rng_state(output_dir)


def compute_retrieval(prediction: EvalPrediction, captions: list[str]) -> dict[str, float]:
    """The metrics of retrieval among all images and captions of a split, by the names that evaluation gives them."""
    image_embeds, text_embeds = (torch.from_numpy(embeds) for embeds in prediction.predictions)
    return {name: metric.value for name, metric in pair_retrieval(image_embeds, text_embeds, captions).items()}
