# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Pushes of a Trainer to the Hub: the model's own files and no others, with a card that tells of the training."""

from concurrent.futures import Future, wait
from pathlib import Path

import torch
import transformers
from huggingface_hub import CommitInfo
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy

from modeling_fdt.model_card import write_model_card
from run_scripts.hub.files import push_folder


class PushesModelFiles:
    """Makes a Trainer push what `run_scripts.hub.files` lists, where Trainer itself pushes all of `output_dir`.

    Raises:
        ValueError: `hub_strategy` asks for whole checkpoints on the Hub; optimiser and random states are pickles.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._upload: Future | None = None  # of the last checkpoint
        allowed = (HubStrategy.END, HubStrategy.EVERY_SAVE)
        if self.args.push_to_hub and self.args.hub_strategy not in allowed:
            raise ValueError(
                f"hub_strategy must be one of {[s.value for s in allowed]}, got {self.args.hub_strategy.value!r}"
            )

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """As Trainer's own; `kwargs` are those of `create_model_card`."""
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)  # by default it calls this method
        if not self.is_world_process_zero():
            return None
        if not Path(self.args.output_dir, "config.json").exists():
            # peft leaves it out, and with it the names of the classes.
            self.accelerator.unwrap_model(self.model).config.save_pretrained(self.args.output_dir)
        self.create_model_card(**kwargs)
        if self._upload is not None:
            wait([self._upload])
        return self._push(self.args.output_dir, commit_message, not blocking, token, revision)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Trainer calls it when it has written a checkpoint, and its own version uploads all of `output_dir`.
        is_busy = self._upload is not None and not self._upload.done()
        if self.args.hub_strategy == HubStrategy.EVERY_SAVE and self.is_world_process_zero():
            if not is_busy or self.args.hub_always_push:
                message = f"Training in progress, step {self.state.global_step}"
                self._upload = self._push(checkpoint_folder, message, run_as_future=True)

    def _push(
        self, folder: str, message: str, run_as_future: bool, token: str | None = None, revision: str | None = None
    ) -> CommitInfo | Future:
        return push_folder(
            folder,
            self.hub_model_id,
            commit_message=message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            run_as_future=run_as_future,
        )

    def create_model_card(self, license=None, tags=None, model_name=None, finetuned_from=None, dataset_tags=None):
        """Write the card that `push_to_hub` uploads; the arguments are Trainer's own."""
        if not self.is_world_process_zero():
            return
        start = self.accelerator.unwrap_model(self.model).config.name_or_path
        write_model_card(
            self.args.output_dir,
            title=model_name or (self.hub_model_id or "").split("/")[-1] or None,
            repo_id=self.hub_model_id,
            license=license,
            base_model=finetuned_from or (start if start and not Path(start).exists() else None),
            datasets=dataset_tags or (),
            tags=tags or (),
            training=describe_training(self.args, self.state),
        )


def describe_training(arguments: TrainingArguments, state: TrainerState) -> dict[str, object]:
    """The facts of a training run, by the names under which a card lists them."""
    batch_size = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    facts: dict[str, object] = {
        "steps": f"{state.global_step:,}",
        "epochs": f"{state.epoch or 0:.4g}",
        "examples in a step": f"{batch_size:,}",
        "optimiser": f"{arguments.optim}, betas {arguments.adam_beta1:g} and {arguments.adam_beta2:g}",
        "learning rate": f"{arguments.learning_rate:g}, {arguments.lr_scheduler_type}, "
        f"warm-up {arguments.warmup_steps:g}",
        "weight decay": f"{arguments.weight_decay:g}",
        "precision": "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32",
        "seed": arguments.seed,
    }
    if losses:
        facts["last training loss"] = f"{losses[-1]:.4g}"
    return facts | {"versions": f"transformers {transformers.__version__}, torch {torch.__version__}"}
