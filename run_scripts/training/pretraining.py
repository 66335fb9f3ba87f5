# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Pretraining: models and data by their arguments, checked before the first step."""

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate.data_loader import IterableDatasetShard
from PIL import Image
from torch.utils.data import DataLoader
from transformers import (
    CONFIG_NAME,
    AutoConfig,
    AutoProcessor,
    CLIPModel,
    PreTrainedModel,
    ProcessorMixin,
    TrainerCallback,
    set_seed,
)

from modeling_fdt import FDTConfig, FDTImageProcessor, FDTModel, FDTProcessor, FDTTokenizer
from modeling_fdt.towers_fdt import get_context_length
from run_scripts.arguments import DataArguments, resolve_config
from run_scripts.data.batches import ContrastiveCollator
from run_scripts.data.pairs import (
    PairDataset,
    PairStream,
    load_eval_dataset,
    load_train_dataset,
)
from run_scripts.data.scenes import SceneDataset
from run_scripts.data.two_views import TwoViewCollator
from run_scripts.training.arguments import ModelArguments, ObjectiveArguments
from run_scripts.training.baselines import ControlConfig, ControlModel, build_clip
from run_scripts.training.codebook_init import start_codebook
from run_scripts.training.declip import DeclipTrainer
from run_scripts.training.features import FeatureCollator, cache_features
from run_scripts.training.trainer import FDTTrainer, FDTTrainingArguments, compute_retrieval


logger = logging.getLogger(__name__)

# By model_type: the class, and what makes a new one of the fields of its configuration.
MODELS = {
    "fdt": (FDTModel, lambda **fields: FDTModel(FDTConfig(**fields))),
    "clip": (CLIPModel, build_clip),
    "fdt_control": (ControlModel, lambda **fields: ControlModel(ControlConfig(**fields))),
}


class PretrainingTrainer(FDTTrainer):
    """FDTTrainer that reads a [`PairStream`], logs what was skipped, and augments on the device if asked to.

    Args:
        start_model: called with the model before the first step of a run, not of one that is resumed.
    """

    def __init__(
        self,
        *args,
        data_collator: ContrastiveCollator | FeatureCollator,
        start_model: Callable[[PreTrainedModel], None] | None = None,
        **kwargs,
    ):
        super().__init__(*args, data_collator=data_collator, **kwargs)
        self.augmentation, self.start_model = data_collator.augmentation, start_model

    def begin_run(self, checkpoint: str | None) -> None:
        super().begin_run(checkpoint)
        if checkpoint is None and self.start_model is not None:
            self.start_model(self.model)

    def get_train_dataloader(self) -> DataLoader:
        dataloader = super().get_train_dataloader()
        if isinstance(dataloader.dataset, IterableDatasetShard):
            # A PairStream gives each process its own part already.
            dataloader.dataset.num_processes, dataloader.dataset.process_index = 1, 0
        return dataloader

    def _prepare_inputs(self, inputs: dict) -> dict:
        # Trainer's place between the data and the model, and the first at which a batch is on the device.
        prepared = super()._prepare_inputs(inputs)
        if isinstance(prepared.get("pixel_values"), tuple):  # of a collator that leaves varying them to the device
            prepared["pixel_values"] = self.augmentation.vary_batch(*prepared["pixel_values"])
            inputs["pixel_values"] = prepared["pixel_values"]  # a micro-batch comes here three times in a step
        return prepared

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs or "train_loss" in logs:
            logs.update(self.count_skipped())
        super().log(logs, *args, **kwargs)

    def count_skipped(self) -> dict[str, int]:
        """What all processes have skipped so far, by reason."""
        totals = {name: n for name, n in self.train_dataset.counts.totals().items() if name.startswith("skipped_")}
        numbers = self.accelerator.reduce(torch.tensor([*totals.values()], device=self.args.device)).tolist()
        return dict(zip(totals, numbers, strict=True))


class DeclipPretrainingTrainer(PretrainingTrainer, DeclipTrainer):
    """PretrainingTrainer with DeCLIP's loss."""


def build_model(arguments: ModelArguments) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a checkpoint with its processor, or make a new model and the processor that fits it."""
    if arguments.model is not None:
        name = arguments.model
        model_type = AutoConfig.from_pretrained(name).model_type
        if model_type not in MODELS:
            raise ValueError(f"model={name!r} is of model_type {model_type!r}, not {[*MODELS]}")
        model = MODELS[model_type][0].from_pretrained(name, dtype=torch.float32)
        return model, AutoProcessor.from_pretrained(name)
    if arguments.vision_model is not None:
        return _join_towers(arguments.vision_model, arguments.text_model, arguments.model_config or {})
    fields = dict(arguments.model_config)
    model_type = fields.pop("model_type", "fdt")
    if model_type not in MODELS:
        raise ValueError(f"model_config has model_type {model_type!r}, it must be one of {[*MODELS]}")
    model = MODELS[model_type][1](**fields)
    try:
        image_processor = FDTImageProcessor(**(arguments.image_processor_config or {}))
    except TypeError as error:
        raise ValueError(f"image_processor_config: {error}") from error
    crop_size, image_size = dict(image_processor.crop_size), getattr(model.config.vision_config, "image_size", None)
    if image_size is not None and (crop_size["height"], crop_size["width"]) != (image_size, image_size):
        raise ValueError(
            f"image_processor_config crops to {crop_size}, but the vision tower takes {image_size} pixels"
        )
    tokenizer = FDTTokenizer(model_max_length=get_context_length(model.config.text_config))
    return model, FDTProcessor(image_processor=image_processor, tokenizer=tokenizer)


def _join_towers(vision_model: str, text_model: str, fields: dict) -> tuple[FDTModel, FDTProcessor]:
    """A new FDT model on two pretrained towers, and the processor that fits it."""
    model = FDTModel.from_vision_text_pretrained(vision_model, text_model, **fields)
    processor = FDTProcessor.from_vision_text_pretrained(vision_model, text_model, model.config)
    inputs = processor(images=Image.new("RGB", (48, 64)), text=["a photo"], return_tensors="pt")
    try:
        with torch.no_grad():
            model(**inputs, return_loss=False)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"vision_model={vision_model!r}, text_model={text_model!r}: the towers cannot take what their processors "
            f"give: {error}"
        ) from error
    return model, processor


def check_pretraining(data_arguments: DataArguments, training_arguments: FDTTrainingArguments) -> None:
    """Raise a ValueError for what would stop the run later."""
    if data_arguments.is_stream:
        if training_arguments.max_steps <= 0:
            raise ValueError("a stream has no length: give max_steps instead of num_train_epochs")
        if training_arguments.accelerator_config.dispatch_batches:
            raise ValueError("accelerator_config must not set dispatch_batches: every process reads its own shards")
        training_arguments.accelerator_config.dispatch_batches = False
    if (training_arguments.eval_strategy != "no") != (data_arguments.validation_split is not None):
        raise ValueError(
            "validation_split and eval_strategy go together, got "
            f"validation_split={data_arguments.validation_split!r} and "
            f"eval_strategy={str(training_arguments.eval_strategy)!r}"
        )
    try:
        Path(training_arguments.output_dir).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=training_arguments.output_dir).close()
    except OSError as error:
        raise ValueError(f"output_dir={training_arguments.output_dir!r} cannot be written: {error}") from error


def refuse_to_overwrite(training_arguments: FDTTrainingArguments) -> None:
    """Raise a ValueError where the run would put its model in the place of a finished one."""
    folder = Path(training_arguments.output_dir)
    if (folder / CONFIG_NAME).exists() and not any(folder.glob("checkpoint-*")):
        raise ValueError(
            f"output_dir={str(folder)!r} holds a model and no checkpoint to resume from: give another folder"
        )


def check_caching(model: PreTrainedModel, dataset: PairDataset | SceneDataset, freeze: list[str] | None) -> None:
    """Raise a ValueError where `cache_features` cannot do without the towers."""
    trained = sorted({"vision_tower", "text_tower"} - {*(freeze or [])})
    if trained:
        raise ValueError(
            f"cache_features needs freeze vision_tower text_tower: the features of {trained} would change"
        )
    if isinstance(dataset, SceneDataset):
        raise ValueError("cache_features needs a data set with an end: every scene is new")
    if not isinstance(model, FDTModel):
        raise ValueError(f"cache_features is for FDT, whose groundings follow the towers, not {type(model).__name__}")


def check_clustering(model: PreTrainedModel, dataset: PairDataset | PairStream | SceneDataset) -> None:
    """Raise a ValueError where codes cannot start from clusters of token features."""
    if isinstance(dataset, PairStream):
        raise ValueError(
            "codebook_init='kmeans' draws pairs by their number, which a stream does not have: start with a sample of "
            "it by `python -m conversion.init_fdt_from_clip --dataset`, and give the folder as model"
        )
    if not isinstance(model, FDTModel):
        raise ValueError(f"codebook_init='kmeans' is for FDT, not {type(model).__name__}, which has no codes")


def check_size(dataset: PairDataset | PairStream | SceneDataset, training_arguments: FDTTrainingArguments) -> None:
    """Raise a ValueError where the data cannot fill a batch, or not every worker has something to read."""
    if isinstance(dataset, PairStream):
        return dataset.check_num_readers(training_arguments.dataloader_num_workers)
    batch_size = training_arguments.train_batch_size * training_arguments.world_size
    if training_arguments.dataloader_drop_last and len(dataset) < batch_size:
        raise ValueError(
            f"per_device_train_batch_size={training_arguments.per_device_train_batch_size} on "
            f"{training_arguments.world_size} processes needs {batch_size} pairs, the data set has {len(dataset)}"
        )


def choose_objective(
    arguments: ObjectiveArguments, processor: ProcessorMixin, data_arguments: DataArguments
) -> tuple[Callable[..., PretrainingTrainer], ContrastiveCollator]:
    """What makes the trainer, and what makes its batches."""
    collator_arguments = (processor, data_arguments.augmentation, data_arguments.augment_on_device)
    if arguments.objective == "declip":
        collator = TwoViewCollator(*collator_arguments, edits=arguments.text_edits)
        return partial(DeclipPretrainingTrainer, objective=arguments), collator
    return PretrainingTrainer, ContrastiveCollator(*collator_arguments)


def train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: FDTTrainingArguments,
    objective_arguments: ObjectiveArguments,
    callbacks: list[TrainerCallback] | None = None,
) -> PretrainingTrainer:
    """Train, and save the model, its processor and the trainer's state in `training_arguments.output_dir`."""
    check_pretraining(data_arguments, training_arguments)
    data_seed = training_arguments.seed if training_arguments.data_seed is None else training_arguments.data_seed
    train_dataset = load_train_dataset(
        data_arguments, data_seed, training_arguments.world_size, training_arguments.process_index
    )
    if isinstance(train_dataset, SceneDataset) and training_arguments.max_steps <= 0:
        raise ValueError("scenes have no end: give max_steps instead of num_train_epochs")
    check_size(train_dataset, training_arguments)
    evaluation = {}
    if data_arguments.validation_split is not None:
        evaluation["eval_dataset"] = load_eval_dataset(data_arguments)
        captions = list(evaluation["eval_dataset"]["caption"])
        evaluation["compute_metrics"] = partial(compute_retrieval, captions=captions)

    set_seed(training_arguments.seed)
    model, processor = build_model(model_arguments)
    if training_arguments.device.type == "cpu":
        # Of no effect but speed: convolutions on a CPU take about three quarters of the time.
        model.to(memory_format=torch.channels_last)
    build_trainer, collator = choose_objective(objective_arguments, processor, data_arguments)
    eval_collator = ContrastiveCollator(processor)
    if data_arguments.cache_features is not None:
        check_caching(model, train_dataset, training_arguments.freeze)
        train_dataset = cache_features(
            data_arguments.cache_features, model, processor, train_dataset, training_arguments
        )
        collator = FeatureCollator()
    start_model = None
    if model_arguments.codebook_init == "kmeans":
        check_clustering(model, train_dataset)
        start_model = partial(
            start_codebook,
            dataset=train_dataset,
            collator=eval_collator if data_arguments.cache_features is None else collator,
            batch_size=training_arguments.per_device_eval_batch_size,
            seed=training_arguments.seed,
        )
    trainer = build_trainer(
        model=model,
        args=training_arguments,
        data_collator=collator,
        eval_collator=eval_collator,
        start_model=start_model,
        train_dataset=train_dataset,
        processing_class=processor,
        distinct_column=train_dataset.distinct_column if isinstance(train_dataset, PairDataset) else None,
        run_config=resolve_config(model_arguments, data_arguments, training_arguments, objective_arguments),
        callbacks=callbacks,
        **evaluation,
    )
    trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    logger.info("In this process the data gave %s.", train_dataset.counts.totals())
    trainer.save_model()
    trainer.save_state()
    return trainer
