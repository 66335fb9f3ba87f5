# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning: image classifiers and contrastive models, all weights, the classifier alone, or LoRA adapters."""

import json
import logging
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset
from torch import nn
from torch.nn import functional as F
from transformers import (
    BatchFeature,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    set_seed,
)
from transformers.utils.peft_utils import find_adapter_config_file

from modeling_fdt import FDTConfig, FDTForImageClassification, FDTModel, FDTProcessor
from run_scripts.arguments import SourceArguments, resolve_config
from run_scripts.data.batches import ContrastiveCollator
from run_scripts.data.decoding import decode_rows
from run_scripts.data.files import format_markdown_table
from run_scripts.data.source import open_pairs, open_source
from run_scripts.evaluation.embedding import embed_captions
from run_scripts.evaluation.metrics import recall_at
from run_scripts.training.arguments import (
    LORA_TARGET_MODULES,
    FDTTrainingOptions,
    FineTuningArguments,
    FineTuningDataArguments,
)
from run_scripts.training.freezing import keep_frozen_in_evaluation
from run_scripts.training.reproducible import ReproducibleTrainer
from run_scripts.training.trainer import FDTTrainer, FDTTrainingArguments, compute_retrieval


logger = logging.getLogger(__name__)


def load_splits(arguments: FineTuningDataArguments, task: str, seed: int) -> tuple[list[Dataset], str | None]:
    """The rows to train on and those to evaluate on, and what their distinct column is called.

    Args:
        arguments: name the splits and columns.
        task: "classification", whose rows need no captions, or "contrastive".
        seed: of the draw, where a share is held out.
    """
    names = [name for name in (arguments.split, arguments.validation_split) if name is not None]
    if task == "classification":
        source = SourceArguments(**{field.name: getattr(arguments, field.name) for field in fields(SourceArguments)})
        opened = [(open_source(source, name, label_column=arguments.label_column), None) for name in names]
    else:
        opened = [open_pairs(arguments, name) for name in names]
    splits, distinct_column = [split for split, _ in opened], opened[0][1]
    if arguments.validation_share is not None:
        parts = splits[0].train_test_split(arguments.validation_share, seed=seed)
        splits = [parts["train"], parts["test"]]
    return splits, distinct_column


def encode_labels(train_dataset: Dataset, eval_dataset: Dataset, column: str) -> tuple[Dataset, Dataset, list[str]]:
    """Both splits with the same `ClassLabel` in a column of class numbers with names, or of names alone.

    Returns:
        The two splits, and the names of the classes by number.

    Raises:
        ValueError: a row has no label, there are fewer than two classes, or the splits do not have the same ones.
    """
    for split in (train_dataset, eval_dataset):
        missing = [row for row, label in enumerate(split[column]) if label is None or label == -1]
        if missing:
            raise ValueError(f"label_column={column!r} is empty in {len(missing)} rows, the first is row {missing[0]}")
    if not isinstance(train_dataset.features[column], ClassLabel):
        # Classes in their own order, numbers as numbers.
        labels = sorted({*train_dataset[column], *eval_dataset[column]})
        names = [str(label) for label in labels]
        train_dataset, eval_dataset = (
            split.remove_columns(column).add_column(
                column, [names.index(str(label)) for label in split[column]], feature=ClassLabel(names=names)
            )
            for split in (train_dataset, eval_dataset)
        )
    names, eval_names = (split.features[column].names for split in (train_dataset, eval_dataset))
    if names != eval_names:
        raise ValueError(f"the splits must have the same classes in one order, got {names} and {eval_names}")
    present = set(train_dataset[column])
    # Folders of classes give both splits the names of either.
    unknown = [names[label] for label in sorted(set(eval_dataset[column]) - present)]
    if unknown:
        raise ValueError(f"the split to evaluate on has classes that the one to train on lacks: {unknown}")
    if len(present) < 2:
        raise ValueError(f"a classifier needs at least 2 classes in label_column={column!r}, got {len(present)}")
    return train_dataset, eval_dataset, names


def check_every_caption(dataset: Dataset, column: str) -> None:
    """Raise a ValueError, naming the column of the data set, for the first row whose caption is missing or empty."""
    for row, captions in enumerate(dataset["caption"]):
        captions = captions if isinstance(captions, list) else [captions]
        if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
            raise ValueError(f"caption_column={column!r} holds no caption in row {row}, got {captions}")


class ClassificationCollator(ContrastiveCollator):
    """Turns rows into `pixel_values` and `labels`; images are augmented as a [`ContrastiveCollator`] does it."""

    def __init__(self, processor: FDTProcessor, label_column: str, augmentation: dict | None = None):
        super().__init__(processor, augmentation)
        self.label_column = label_column

    def __call__(self, rows: list[dict]) -> BatchFeature:
        images = [row["image"] for row in rows]
        if self.augmentation is None:
            inputs = self.processor(images=images, return_tensors="pt")
        else:
            inputs = BatchFeature({"pixel_values": self.augment(images)})
        inputs["labels"] = torch.tensor([row[self.label_column] for row in rows])
        return inputs


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of images whose highest logit is that of their class."""
    logits, labels = torch.from_numpy(prediction.predictions), torch.from_numpy(prediction.label_ids)
    return {"accuracy": recall_at(logits, F.one_hot(labels, logits.shape[1]).bool(), k=1)}


def load_checkpoint(
    model_class: type[PreTrainedModel], name_or_path: str, may_lack: str | None = None, **kwargs
) -> PreTrainedModel:
    """Load a checkpoint that holds all weights of a class, but for those whose name starts with `may_lack`."""
    model, report = model_class.from_pretrained(name_or_path, output_loading_info=True, dtype=torch.float32, **kwargs)
    missing = sorted(key for key in report["missing_keys"] if may_lack is None or not key.startswith(may_lack))
    if missing:
        raise ValueError(
            f"model={name_or_path!r} lacks {len(missing)} weights of {model_class.__name__}: {missing[:3]}, ..."
        )
    return model


def load_classifier(name_or_path: str, names: list[str]) -> FDTForImageClassification:
    """The image tower of a checkpoint with a classifier of these classes, new unless the checkpoint has one.

    Raises:
        ValueError: the checkpoint's classifier has other classes.
    """
    config = FDTConfig.from_pretrained(name_or_path)
    known = list(config.id2label.values())
    if "FDTForImageClassification" in (config.architectures or []) and known != names:
        raise ValueError(
            f"model={name_or_path!r} classifies {known}, the data have the classes {names}; start from "
            "the checkpoint that it was made of"
        )
    return load_checkpoint(
        FDTForImageClassification,
        name_or_path,
        may_lack="classifier.",
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        problem_type="single_label_classification",
    )


@torch.no_grad()
def set_zero_shot_classifier(
    classifier: nn.Linear, name_or_path: str, processor: FDTProcessor, captions: list[str]
) -> None:
    """Make a linear layer on image embeddings the zero-shot classifier of one caption for each class."""
    model = load_checkpoint(FDTModel, name_or_path).eval()
    embeds = embed_captions(model, processor, captions).embeds
    classifier.weight.copy_(model.capped_logit_scale.exp() * embeds)
    classifier.bias.zero_()


def freeze_all_but_classifier(model: FDTForImageClassification) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier."))


def add_lora(model: PreTrainedModel, rank: int, target_modules: list[str]) -> nn.Module:
    """Put LoRA adapters on the towers; of all other weights only those of a classifier stay trainable.

    Args:
        model: an FDT model.
        rank: of the adapters; their scale is 2, so that a good learning rate changes little with the rank.
        target_modules: names of linear or convolutional modules, or the ends of their dotted paths.

    Returns:
        `peft.PeftModel`

    Raises:
        ImportError: peft is not installed.
        ValueError: a name fits no module, or none fits a module of one of the towers.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("train='lora' needs peft, which `pip install -e '.[train]'` installs") from error
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    towers = [tower for tower in ("vision_tower", "text_tower") if hasattr(model, tower)]
    adapted = {target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in target_modules}
    adapted_names = [name for names in adapted.values() for name in names]
    if not all(adapted.values()) or not all(any(n.startswith(tower) for n in adapted_names) for tower in towers):
        choices = {tower: sorted({_last_name(n) for n in layers if n.startswith(tower)}) for tower in towers}
        raise ValueError(
            f"lora_target_modules must each fit a module, and some in every tower, got {target_modules}; "
            f"modules that LoRA can adapt: {choices}"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=target_modules,
        modules_to_save=["classifier"] if hasattr(model, "classifier") else None,
    )
    return get_peft_model(model, config)


def _last_name(path: str) -> str:
    """The end of a dotted path that tells a module's role: `fc1`, `projection.0`."""
    parts = path.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def prepare_classification(
    arguments: FineTuningArguments, data_arguments: FineTuningDataArguments, splits: list[Dataset]
) -> tuple[dict, FDTProcessor]:
    """What the trainer of a classifier takes, and the processor."""
    name, column = arguments.model, data_arguments.label_column
    train_dataset, eval_dataset, names = encode_labels(*splits, column)
    model, processor = load_classifier(name, names), FDTProcessor.from_pretrained(name)
    if arguments.zero_shot_template is not None:
        captions = [arguments.zero_shot_template.format(name) for name in names]
        set_zero_shot_classifier(model.classifier, name, processor, captions)
    parts = {
        "model": model,
        "train_dataset": train_dataset,
        "eval_dataset": eval_dataset,
        "data_collator": ClassificationCollator(processor, column, data_arguments.augmentation),
        "eval_collator": ClassificationCollator(processor, column),
        "compute_metrics": compute_accuracy,
    }
    return parts, processor


def prepare_contrastive(
    arguments: FineTuningArguments, data_arguments: FineTuningDataArguments, splits: list[Dataset]
) -> tuple[dict, FDTProcessor]:
    """What the trainer of a contrastive model takes, and the processor."""
    name = arguments.model
    for split in splits:
        check_every_caption(split, data_arguments.caption_column)
    train_dataset, eval_dataset = splits
    captions = [c[0] if isinstance(c, list) else c for c in eval_dataset["caption"]]
    eval_dataset = eval_dataset.remove_columns("caption").add_column("caption", captions)
    model, processor = load_checkpoint(FDTModel, name), FDTProcessor.from_pretrained(name)
    parts = {
        "model": model,
        "train_dataset": train_dataset,
        "eval_dataset": eval_dataset,
        "data_collator": ContrastiveCollator(processor, data_arguments.augmentation),
        "eval_collator": ContrastiveCollator(processor),
        "compute_metrics": partial(compute_retrieval, captions=captions),
    }
    return parts, processor


def check_fine_tuning(
    arguments: FineTuningArguments, data_arguments: FineTuningDataArguments, training_arguments: FDTTrainingArguments
) -> None:
    """Raise a ValueError for arguments that do not go together, or a checkpoint that is not one to start from."""
    if arguments.task == "classification" and data_arguments.distinct_column is not None:
        raise ValueError("distinct_column needs task='contrastive', got task='classification'")
    # A classifier has no logit scale, and adapters do not carry a changed codebook, temperature or logit scale.
    for option in fields(FDTTrainingOptions):
        if getattr(training_arguments, option.name) != option.default:
            if arguments.task != "contrastive" or arguments.train != "all":
                raise ValueError(
                    f"{option.name} needs task='contrastive' and train='all', got task={arguments.task!r} and "
                    f"train={arguments.train!r}"
                )
    name = arguments.model
    try:
        model_type = FDTConfig.get_config_dict(name)[0].get("model_type")
    except OSError as error:
        raise ValueError(f"model={name!r} cannot be loaded: {error}") from error
    if find_adapter_config_file(name) is not None:
        raise ValueError(f"model={name!r} holds adapters; fine-tune a model that they are merged into")
    if model_type != FDTConfig.model_type:
        raise ValueError(f"model={name!r} must hold an FDT model, it holds one of type {model_type!r}")


def build_trainer(
    arguments: FineTuningArguments, data_arguments: FineTuningDataArguments, training_arguments: FDTTrainingArguments
) -> Trainer:
    """Open the data, load the model, freeze what does not train, and join them."""
    check_fine_tuning(arguments, data_arguments, training_arguments)
    is_classifier = arguments.task == "classification"
    splits, distinct_column = load_splits(data_arguments, arguments.task, training_arguments.seed)
    batch_size = training_arguments.train_batch_size * training_arguments.world_size
    if training_arguments.dataloader_drop_last and len(splits[0]) < batch_size:
        raise ValueError(
            f"a global batch of {batch_size} needs as many images to train on, got {len(splits[0])}; "
            "lower per_device_train_batch_size"
        )
    prepare = prepare_classification if is_classifier else prepare_contrastive
    parts, processor = prepare(arguments, data_arguments, splits)
    if not is_classifier:
        parts["distinct_column"] = distinct_column
    for name in ("train_dataset", "eval_dataset"):
        parts[name] = parts[name].with_transform(decode_rows)
    if arguments.train == "classifier":
        freeze_all_but_classifier(parts["model"])
    elif arguments.train == "lora":
        target_modules = arguments.lora_target_modules or LORA_TARGET_MODULES
        parts["model"] = add_lora(parts["model"], arguments.lora_rank, target_modules)
    keep_frozen_in_evaluation(parts["model"])
    trainer_class = ReproducibleTrainer if is_classifier else FDTTrainer
    run_config = resolve_config(arguments, data_arguments, training_arguments)
    return trainer_class(**parts, args=training_arguments, processing_class=processor, run_config=run_config)


def format_results(results: dict[str, dict[str, float]], num_rows: int) -> str:
    """What evaluation gave before and after as a Markdown table: shares in per cent, the rest as it is."""
    rows = []
    for name, before in results["before"].items():
        is_share = name.endswith("accuracy") or "_R@" in name
        form = ".1%" if is_share else ".3f" if name.endswith("loss") else ".1f"
        rows.append([name.removeprefix("eval_"), f"{before:{form}}", f"{results['after'][name]:{form}}"])
    return format_markdown_table([f"{num_rows} held-out rows", "before", "after"], rows)


def without_timings(metrics: dict[str, float]) -> dict[str, float]:
    """What evaluation says of the model: its loss and metrics."""
    timings = ("_runtime", "_per_second", "_time", "epoch", "step")
    return {name: value for name, value in metrics.items() if not name.endswith(timings)}


def finetune(
    arguments: FineTuningArguments, data_arguments: FineTuningDataArguments, training_arguments: FDTTrainingArguments
) -> Trainer:
    """Train; save the model or its adapters, the processor and results.json in `training_arguments.output_dir`."""
    output_dir = Path(training_arguments.output_dir)
    if training_arguments.resume_from_checkpoint is None and output_dir.exists() and any(output_dir.iterdir()):
        raise ValueError(f"output_dir={str(output_dir)!r} is not empty; remove it, or give resume_from_checkpoint")
    set_seed(training_arguments.seed)
    # By Trainer itself: after a call of `evaluate`, `train` would not synchronise processes (transformers 5.23).
    training_arguments.eval_on_start = True
    trainer = build_trainer(arguments, data_arguments, training_arguments)
    trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    if arguments.merge_lora:
        trainer.model = trainer.model.merge_and_unload()
    before = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    results = {"before": without_timings(before), "after": without_timings(trainer.evaluate())}
    if trainer.is_world_process_zero():
        print("\n" + format_results(results, len(trainer.eval_dataset)))
        (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        if arguments.train == "lora" and not arguments.merge_lora:
            # peft leaves it out, and with it the names of the classes.
            trainer.model.config.save_pretrained(output_dir)
    trainer.save_state()
    trainer.save_model()
    return trainer
