# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""A Trainer whose runs are the same however often they are killed, resumed, and on how many workers they read."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from run_scripts.data.batches import ReproducibleCollator
from run_scripts.training.pushing import PushesModelFiles


logger = logging.getLogger(__name__)


class ReproducibleTrainer(PushesModelFiles, Trainer):
    """Trainer with batches that depend on the seed alone, complete checkpoints, and evaluation on every row.

    Args:
        eval_collator: as `data_collator`, for evaluation; by default the same.
    """

    def __init__(self, *args, eval_collator: Callable[[list], Any] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_collator = ReproducibleCollator(eval_collator or self.data_collator, self.args.seed)
        self.data_collator = ReproducibleCollator(self.data_collator, self.args.seed)

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
        Train.

        Args:
            resume_from_checkpoint: a checkpoint's folder; or True (or "true", as a flag) for the last complete one in
                `output_dir`, and a fresh start where there is none.

        Raises:
            ValueError: the checkpoint that is named is not complete.
        """
        checkpoint = self._find_checkpoint(resume_from_checkpoint)
        self.begin_run(checkpoint)
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def begin_run(self, checkpoint: str | None) -> None:
        """Prepare what is counted in a run, from a checkpoint or from 0; for classes that count."""

    def _find_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | None:
        if str(resume_from_checkpoint).lower() in ("none", "false"):
            return None
        if str(resume_from_checkpoint).lower() != "true":
            if not is_complete(resume_from_checkpoint):
                raise ValueError(f"resume_from_checkpoint={resume_from_checkpoint!r} is no complete checkpoint")
            return resume_from_checkpoint
        # One process decides: another may not see the same files yet.
        checkpoint = broadcast_object_list([find_last_checkpoint(self.args.output_dir)])[0]
        if checkpoint is None:
            logger.info("No complete checkpoint in %s: training starts afresh.", self.args.output_dir)
        return checkpoint

    def _save_checkpoint(self, model, trial) -> None:
        if self.args.should_save:
            # A checkpoint that is written over one of the same step is not complete until it is written anew.
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Trainer's state is written next, and last: then every process has written its part.
        self.accelerator.wait_for_everyone()


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
