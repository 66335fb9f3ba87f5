# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""A Trainer whose runs are the same however often they are killed, resumed, and on how many workers they read."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from run_scripts.data.batches import ReproducibleCollator
from run_scripts.training.pushing import PushesModelFiles


logger = logging.getLogger(__name__)


# In a checkpoint, beside Trainer's own files: what a run that resumes it must have in common with its own.
RECIPE_NAME = "recipe.json"

# Of transformers' TrainingArguments.
RECIPE_ARGUMENTS = (
    *("seed", "data_seed", "train_sampling_strategy", "max_steps", "num_train_epochs"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("bf16", "fp16", "label_smoothing_factor"),
)


# Fields of a configuration that say nothing about the function that a model computes.
_NOT_OF_THE_MODEL = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")


class ReproducibleTrainer(PushesModelFiles, Trainer):
    """Trainer with batches that depend on the seed alone, checkpoints that lead to one and the same run, and
    evaluation on every row.

    Args:
        eval_collator: as `data_collator`, for evaluation; by default the same.
        recipe: what decides the outcome beside the model and its training arguments, by name, as JSON can hold it; a
            resumed run must have the same.

    Raises:
        ValueError: the processes were not started as one run, or one process has several GPUs.
    """

    def __init__(
        self, *args, eval_collator: Callable[[list], Any] | None = None, recipe: dict[str, Any] | None = None, **kwargs
    ):
        super().__init__(*args, **kwargs)
        check_launch(self.args)
        self.own_recipe = recipe or {}
        self.eval_collator = ReproducibleCollator(eval_collator or self.data_collator, self.args.seed)
        self.data_collator = ReproducibleCollator(self.data_collator, self.args.seed)
        self.add_callback(EpochTeller(self))

    def set_epoch(self, epoch: int) -> None:
        """Tell what draws random numbers for training which epoch begins."""
        self.data_collator.set_epoch(epoch)

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        with self._set_for_evaluation():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        with self._set_for_evaluation():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _set_for_evaluation(self) -> Iterator[None]:
        # Trainer has one collator and one `dataloader_drop_last` for training and evaluation.
        in_training = self.data_collator, self.args.dataloader_drop_last
        self.data_collator, self.args.dataloader_drop_last = self.eval_collator, False
        try:
            yield
        finally:
            self.data_collator, self.args.dataloader_drop_last = in_training

    # Checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Train. A run that is finished and resumed does nothing more.

        Args:
            resume_from_checkpoint: a checkpoint's folder; or True (or "true", as a flag) for the last complete one in
                `output_dir`, and a fresh start where there is none.

        Raises:
            ValueError: the checkpoint that is named is not complete or is another run's, or a fresh start would mix
                its checkpoints with those in `output_dir`.
        """
        checkpoint = self._find_checkpoint(resume_from_checkpoint)
        self.recipe = self.describe_recipe()
        if checkpoint is not None:
            self._check_recipe(checkpoint)
        self.begin_run(checkpoint)
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def begin_run(self, checkpoint: str | None) -> None:
        """Prepare what is counted in a run, from a checkpoint or from 0; for classes that count."""

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self.state.global_step >= self.state.max_steps:  # of a finished run; Trainer would train one more step
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _find_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | None:
        # One process looks: another may not see the same files yet.
        output_dir = self.args.output_dir
        names, checkpoint = broadcast_object_list(
            [sorted(path.name for path in Path(output_dir).glob("checkpoint-*")), find_last_checkpoint(output_dir)]
        )
        if str(resume_from_checkpoint).lower() in ("none", "false"):
            if names:
                raise ValueError(
                    f"output_dir={output_dir!r} holds {names[0]} of another run: give another folder, or "
                    "resume_from_checkpoint"
                )
            return None
        if str(resume_from_checkpoint).lower() != "true":
            if not is_complete(resume_from_checkpoint):
                raise ValueError(f"resume_from_checkpoint={resume_from_checkpoint!r} is no complete checkpoint")
            return str(resume_from_checkpoint)
        if checkpoint is None:
            logger.info("No complete checkpoint in %s: training starts afresh.", output_dir)
        return checkpoint

    def describe_recipe(self) -> dict[str, Any]:
        """What decides the outcome of the run, by name: model, data, arguments."""
        arguments = self.args.to_dict()
        standard = {field.name for field in fields(TrainingArguments)}
        names = [*RECIPE_ARGUMENTS, *(field.name for field in fields(self.args) if field.name not in standard)]
        model = self.accelerator.unwrap_model(self.model)
        config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_OF_THE_MODEL}
        recipe = {
            **{name: arguments[name] for name in names},
            "batch_size": self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            "model": {
                "class": type(model).__name__,
                "start": model.config.name_or_path,
                "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                **config,
            },
            "num_rows": len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None,
            **self.own_recipe,
        }
        return json.loads(json.dumps(_flatten(recipe)))

    def _check_recipe(self, checkpoint: str) -> None:
        path = Path(checkpoint) / RECIPE_NAME
        if not path.exists():
            raise ValueError(f"{checkpoint} was not written by {type(self).__name__}: it has no {RECIPE_NAME}")
        other = json.loads(path.read_text())
        # Where data are not skipped, a resumed run may read them in another order.
        free = ("data_seed", "data.readers") if self.args.ignore_data_skip else ()
        names = sorted({*self.recipe, *other} - {*free})
        differences = [
            f"{name} is {self.recipe.get(name)!r} and was {other.get(name)!r}"
            for name in names
            if self.recipe.get(name) != other.get(name)
        ]
        if differences:
            raise ValueError(
                f"{checkpoint} is of another run: {'; '.join(differences[:5])}"
                f"{', ...' if len(differences) > 5 else ''}; give another output_dir"
            )

    def _save_checkpoint(self, model, trial) -> None:
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            # A checkpoint that is written over one of the same step is not complete until it is written anew.
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
            (folder / RECIPE_NAME).write_text(json.dumps(self.recipe, indent=2) + "\n")
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Trainer's state is written next, and last: then every process has written its part.
        self.accelerator.wait_for_everyone()


class EpochTeller(TrainerCallback):
    """Tells the trainer at the beginning of every epoch which one it is.

    accelerate does not pass on the epoch where a resumed run skips batches, and never to a collator.
    """

    def __init__(self, trainer: ReproducibleTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state: TrainerState, control, **kwargs) -> None:
        self.next_epoch = int(state.epoch or 0)

    def on_epoch_begin(self, *args, **kwargs) -> None:
        # Counted: `state.epoch` lags behind where a stream ends before the length that Trainer supposes.
        self.trainer.set_epoch(self.next_epoch)
        self.next_epoch += 1


def check_launch(arguments: TrainingArguments) -> None:
    """Refuse what would train otherwise than the arguments say.

    Raises:
        ValueError: processes that were started together do not know of each other, one process has several GPUs, or
            the launcher asks for another precision.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size != arguments.world_size:
        raise ValueError(
            f"{world_size} processes were started (WORLD_SIZE), but each would train alone: the run has "
            f"{arguments.world_size}; to train on CPUs give use_cpu"
        )
    if arguments.n_gpu > 1:
        raise ValueError(
            f"this process has {arguments.n_gpu} GPUs, and the loss would be of a part of the batch on each: start "
            f"one process for each by `torchrun --nproc_per_node {arguments.n_gpu}`, or choose one by "
            "CUDA_VISIBLE_DEVICES"
        )
    precision = "fp16" if arguments.fp16 else "bf16" if arguments.bf16 else "no"
    if arguments.mixed_precision != precision:
        raise ValueError(
            f"the launcher asks for mixed_precision={arguments.mixed_precision!r} (ACCELERATE_MIXED_PRECISION), the "
            f"arguments for bf16={arguments.bf16} and fp16={arguments.fp16}"
        )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A dict of dicts as one, with dotted names."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def is_complete(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written to its end: whether Trainer's state, which is written last, can be read."""
    try:
        json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    return True


def find_last_checkpoint(output_dir: str | Path) -> str | None:
    """The complete checkpoint of the latest step, or None. Not transformers' own: that one takes incomplete ones."""
    steps = [path.name.removeprefix("checkpoint-") for path in Path(output_dir).glob("checkpoint-*")]
    for step in sorted((int(step) for step in steps if step.isdecimal()), reverse=True):
        checkpoint = Path(output_dir) / f"checkpoint-{step}"
        if is_complete(checkpoint):
            return str(checkpoint)
        logger.warning("%s is not complete and is passed over.", checkpoint)
    return None
