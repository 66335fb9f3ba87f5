# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""A Trainer whose runs are the same however often they are killed, resumed, and on how many workers they read."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedConfig, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from run_scripts.data.batches import ReproducibleCollator
from run_scripts.training.pushing import PushesModelFiles


logger = logging.getLogger(__name__)


# In `output_dir`: the arguments of the run, a config that starts it again.
ARGUMENTS_NAME = "arguments.json"

# In a checkpoint, beside Trainer's own files: what decides the outcome of the run, and so of one that resumes it.
RECIPE_NAME = "recipe.json"

# Of transformers' TrainingArguments these are part of the recipe ...
_DECISIVE_ARGUMENTS = (
    *("seed", "data_seed", "train_sampling_strategy", "max_steps", "num_train_epochs"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("bf16", "fp16", "label_smoothing_factor"),
)


# ... and of all other arguments those that are not here. The model stands in the recipe with all of its configuration.
_FREE_ARGUMENTS = (
    *("model", "model_config", "merge_lora", "augment_on_device"),
    *("validation_split", "validation_dataset", "max_broken_fraction"),
)

# Fields of a configuration that say nothing about the function that a model computes.
_NOT_OF_THE_MODEL = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")


class ReproducibleTrainer(PushesModelFiles, Trainer):
    """Trainer with batches that depend on the seed alone, checkpoints that lead to one and the same run, and
    evaluation on every row.

    Args:
        eval_collator: as `data_collator`, for evaluation; by default the same.
        run_config: the arguments by which the run was started, as [`resolve_config`] gives them. They are saved in
            `output_dir`, and those that decide the outcome must be the same when the run is resumed.

    Raises:
        ValueError: the processes were not started as one run, or one process has several GPUs.
    """

    def __init__(
        self,
        *args,
        eval_collator: Callable[[list], Any] | None = None,
        run_config: dict[str, Any] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        check_launch(self.args)
        self.run_config = run_config
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
        if self.run_config is not None and self.is_world_process_zero():
            path = Path(self.args.output_dir, ARGUMENTS_NAME)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps(self.run_config, indent=2)
            path.write_text(content + "\n", encoding="utf-8")
            logger.info("The arguments of this run, in %s: %s", path, content)
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
        """What decides the outcome of the run, by name: arguments, model, data."""
        arguments = self.args.to_dict()
        standard = {field.name for field in fields(TrainingArguments)}
        added = {field.name for field in fields(self.args)} - standard
        others = {*(self.run_config or {})} - standard - added - {*_FREE_ARGUMENTS}
        model = self.accelerator.unwrap_model(self.model)
        recipe = {
            **{name: arguments[name] for name in (*_DECISIVE_ARGUMENTS, *added)},
            **{name: self.run_config[name] for name in others},
            "batch_size": self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            "model": {
                "class": type(model).__name__,
                "start": model.config.name_or_path,
                "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                **describe_config(model.config),
            },
        }
        if isinstance(self.train_dataset, IterableDataset):  # whose order depends on who reads it
            recipe["readers"] = [self.args.world_size, self.args.dataloader_num_workers]
        else:
            recipe["num_rows"] = len(self.train_dataset)
        return json.loads(json.dumps(_flatten(recipe), sort_keys=True))

    def _check_recipe(self, checkpoint: str) -> None:
        path = Path(checkpoint) / RECIPE_NAME
        if not path.exists():
            raise ValueError(f"{checkpoint} was not written by {type(self).__name__}: it has no {RECIPE_NAME}")
        other = json.loads(path.read_text())
        # Where data are not skipped, a resumed run may read them in another order.
        free = ("data_seed", "readers") if self.args.ignore_data_skip else ()
        names = sorted({*self.recipe, *other} - {*free})
        differences = [
            f"{name} is {_tell(self.recipe, name)} and was {_tell(other, name)}"
            for name in names
            if self.recipe.get(name) != other.get(name)
        ]
        if differences:
            raise ValueError(
                f"{checkpoint} is of another run: {'; '.join(differences[:5])}"
                f"{', ...' if len(differences) > 5 else ''}; give another output_dir"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if _internal_call and output_dir is not None and self.args.should_save:
            # A checkpoint that is written over one of the same step is not complete until it is written anew. The
            # model is what Trainer writes first.
            Path(output_dir, TRAINER_STATE_NAME).unlink(missing_ok=True)
        super().save_model(output_dir, _internal_call)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            Path(output_dir, RECIPE_NAME).write_text(json.dumps(self.recipe, indent=2) + "\n", encoding="utf-8")
        # Trainer has no public place for what else a checkpoint holds. It writes its state next, and last: here all
        # processes must have written their part.
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
    if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            f"MASTER_ADDR={os.environ['MASTER_ADDR']!r} tells of other processes, but WORLD_SIZE is not set, "
            "so this one would train alone: `accelerate launch` starts them so with --cpu, and on machines of one GPU "
            "without a config file: give it --config_file run_scripts/configs/accelerate/ddp.yaml"
        )
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


def describe_config(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says of the function that a model computes."""
    return {name: value for name, value in config.to_dict().items() if name not in _NOT_OF_THE_MODEL}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A dict of dicts as one, with dotted names."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _tell(recipe: dict[str, Any], name: str) -> str:
    return repr(recipe[name]) if name in recipe else "not given"


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
