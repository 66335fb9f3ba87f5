# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What contrastive training adds to transformers' Trainer."""

from dataclasses import dataclass, field

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from run_scripts.training_data import DistinctBatchSampler


@dataclass
class FDTTrainingArguments(TrainingArguments):
    """transformers' own, with the defaults that a contrastive loss over image-text pairs needs."""

    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads the columns."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "The loss depends on the batch size."})
    ddp_find_unused_parameters: bool = field(default=False, metadata={"help": "Every parameter takes part."})


class FDTTrainer(Trainer):
    """Trainer with batches distinct in a column, `logit_scale` and batch norms not decayed, active codes logged."""

    def __init__(self, *args, distinct_column: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.distinct_column = distinct_column

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.distinct_column is None:
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        block_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return DistinctBatchSampler(dataset[self.distinct_column][:], block_size, self.args.seed)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # Trainer itself spares biases and layer norms.
        spared = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
        return [name for name in super().get_decay_parameter_names(model) if name not in spared | {"logit_scale"}]

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        self.active_codes = {
            "active_codes_per_image": count_active(outputs.image_code_weights),
            "active_codes_per_caption": count_active(outputs.text_code_weights),
        }
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs.update({name: count.item() for name, count in self.active_codes.items()})
            logs["logit_scale"] = self.accelerator.unwrap_model(self.model).logit_scale.item()
        super().log(logs, *args, **kwargs)


def count_active(code_weights: torch.Tensor) -> torch.Tensor:
    """Mean number of codes above 0 in a row of (batch_size, codebook_size) weights, a scalar on their device."""
    return (code_weights > 0).sum(dim=-1).float().mean()
