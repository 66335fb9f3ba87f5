# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of pretraining, fine-tuning and studies; light, so that help and refusals come at once."""

import re
from dataclasses import MISSING, dataclass, field, fields
from typing import Literal

from run_scripts.arguments import DataArguments, LateArguments, TrainingDataArguments, parse_json


LORA_TARGET_MODULES = ["q_proj", "v_proj"]  # of CLIP's and SigLIP's attention


@dataclass
class ModelArguments:
    """What to train: a checkpoint, a new model on two pretrained towers, or one that is new as a whole."""

    model: str | None = field(default=None, metadata={"help": "Checkpoint with its processor."})
    vision_model: str | None = field(
        default=None, metadata={"help": "Checkpoint whose image tower and image processor a new FDT model takes."}
    )
    text_model: str | None = field(
        default=None, metadata={"help": "Likewise text tower and tokenizer; of CLIP, SigLIP: the same checkpoint."}
    )
    model_config: dict | str | None = field(
        default=None,
        metadata={"help": "Fields of FDTConfig, for a new model; with model_type clip, a CLIP's two towers."},
    )
    image_processor_config: dict | str | None = field(
        default=None, metadata={"help": "Options of FDTImageProcessor, for a new model."}
    )
    codebook_init: Literal["normal", "kmeans"] = field(
        default="normal",
        metadata={"help": "Start the codes of a new model from random numbers, or from clusters of token features."},
    )

    def __post_init__(self):
        self.model_config = parse_json("model_config", self.model_config)
        self.image_processor_config = parse_json("image_processor_config", self.image_processor_config)
        if (self.vision_model is None) != (self.text_model is None):
            raise ValueError(
                "vision_model and text_model go together, got "
                f"vision_model={self.vision_model!r} and text_model={self.text_model!r}"
            )
        if (self.model is None) == (self.model_config is None and self.vision_model is None):
            raise ValueError(
                "give either model, vision_model and text_model, or model_config, got "
                f"model={self.model!r}, vision_model={self.vision_model!r} and model_config={self.model_config!r}"
            )
        if self.codebook_init == "kmeans" and self.model is not None:
            raise ValueError(f"codebook_init='kmeans' is for new models; model={self.model!r} brings its own codes")
        if self.image_processor_config is not None and (self.model is not None or self.vision_model is not None):
            raise ValueError("image_processor_config is for new models; a checkpoint brings its own image processor")
        of_towers = [n for n in self.model_config or {} if n == "model_type" or n.startswith(("vision_", "text_"))]
        if self.vision_model is not None and of_towers:
            raise ValueError(f"model_config beside vision_model must leave the towers as they are, got {of_towers}")


@dataclass
class ObjectiveArguments:
    """What pretraining minimises: the contrastive loss of FDT and CLIP, or that of DeCLIP."""

    objective: Literal["contrastive", "declip"] = field(
        default="contrastive", metadata={"help": "declip: two views of each pair and four terms, for an FDT model."}
    )
    multi_view_weight: float = field(
        default=0.4, metadata={"help": "Of the contrastive loss of two image views and two text views."}
    )
    simsiam_weight: float = field(default=0.2, metadata={"help": "Of what one image view predicts of the other."})
    nearest_neighbor_weight: float = field(
        default=0.2, metadata={"help": "Of images among the nearest neighbours of their captions."}
    )
    masked_language_weight: float = field(default=0.2, metadata={"help": "Of masked words."})
    queue_size: int = field(default=65536, metadata={"help": "Captions to find nearest neighbours among."})
    text_edits: list[str] = field(
        default_factory=lambda: ["synonym", "swap", "insertion", "deletion"],
        metadata={"help": "Of these one is drawn for the second view of a caption."},
    )
    declip_heads: str | None = field(
        default=None, metadata={"help": "Heads and queue to start from, declip.safetensors of a checkpoint."}
    )

    def __post_init__(self):
        if self.objective == "contrastive":
            for part in fields(self)[1:]:
                value = getattr(self, part.name)
                if value != (part.default if part.default_factory is MISSING else part.default_factory()):
                    raise ValueError(f"{part.name}={value!r} needs objective='declip'")
        for name in ("multi_view", "simsiam", "nearest_neighbor", "masked_language"):
            if getattr(self, f"{name}_weight") < 0:
                raise ValueError(f"{name}_weight must be at least 0, got {getattr(self, f'{name}_weight')}")
        if self.queue_size < 1:
            raise ValueError(f"queue_size must be at least 1, got {self.queue_size}")


@dataclass
class FineTuningArguments:
    """What to fine-tune, to what end, and which of its weights."""

    model: str = field(metadata={"help": "An FDT checkpoint with its processor: a folder or a Hub name."})
    task: Literal["classification", "contrastive"] = field(
        metadata={"help": "Labelled images for an image classifier, or captioned ones for the model itself."}
    )
    train: Literal["all", "classifier", "lora"] = field(
        default="all",
        metadata={"help": "All weights, the classifier alone (a linear probe), or LoRA adapters and the classifier."},
    )
    zero_shot_template: str | None = field(
        default=None,
        metadata={"help": "Caption of a class, with {} for its name: start from the zero-shot classifier it makes."},
    )
    lora_rank: int | None = field(default=None, metadata={"help": "Rank of the adapters, with train=lora."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": f"Names of linear or convolutional modules of the towers; default {LORA_TARGET_MODULES}."},
    )
    merge_lora: bool = field(
        default=False, metadata={"help": "Save the whole model with the adapters merged in, not the adapters alone."}
    )

    def __post_init__(self):
        if self.task == "contrastive":
            if self.train == "classifier":
                raise ValueError("train='classifier' needs task='classification', got task='contrastive'")
            if self.zero_shot_template is not None:
                raise ValueError("zero_shot_template needs task='classification', got task='contrastive'")
        if self.zero_shot_template is not None and self.zero_shot_template.count("{}") != 1:
            raise ValueError(f"zero_shot_template must hold {{}} once, got {self.zero_shot_template!r}")
        if self.train == "lora" and (self.lora_rank is None or self.lora_rank < 1):
            raise ValueError(f"train='lora' needs a lora_rank of at least 1, got {self.lora_rank}")
        for name in ("lora_rank", "lora_target_modules", "merge_lora"):
            if self.train != "lora" and getattr(self, name):
                raise ValueError(f"{name} needs train='lora', got train={self.train!r}")


@dataclass(kw_only=True)
class FineTuningDataArguments(TrainingDataArguments):
    """What to fine-tune and to evaluate on."""

    label_column: str = field(default="label", metadata={"help": "Column of classes: numbers with names, or names."})
    validation_share: float | None = field(
        default=None, metadata={"help": "Share of split to hold out instead of validation_split, drawn by seed."}
    )

    def __post_init__(self):
        super().__post_init__()
        if (self.validation_split is None) == (self.validation_share is None):
            raise ValueError(
                "give either validation_split or validation_share, got "
                f"validation_split={self.validation_split!r} and validation_share={self.validation_share!r}"
            )
        if self.validation_share is not None and not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must lie between 0 and 1, got {self.validation_share}")
        if self.validation_split == self.split:
            raise ValueError(f"validation_split must not be split, got {self.split!r} for both")


@dataclass
class StudyArguments:
    """What is compared, on what, and how often."""

    config: str = field(metadata={"help": "A config of run_pretraining: what all variants share."})
    variants: dict = field(
        metadata={
            "help": "By name: `changes` to the config, and `trials`, each further changes that are tried. Objects are "
            "changed member by member."
        }
    )
    evaluations: dict = field(
        metadata={
            "help": "By title: `task` of run_evaluation, its `arguments`, the `columns` to show as metrics by "
            "heading, and, where it is not for all models, `only`: a list of model types."
        }
    )
    seeds: list[int] = field(metadata={"help": "The best trial of each variant is trained with each of them."})
    tuning_seed: int = field(metadata={"help": "Seed of all trials; none of `seeds`."})
    tuning_steps: int = field(metadata={"help": "Training steps of a trial; `max_steps` are those of the rest."})
    output_dir: str = field(metadata={"help": "Folder of all runs and of the report."})
    changes: dict | str | None = field(default=None, metadata={"help": "Changes to the config, for all variants."})

    def __post_init__(self):
        self.changes = parse_json("changes", self.changes) or {}
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise ValueError(f"seeds must be different numbers, at least one, got {self.seeds}")
        if self.tuning_seed in self.seeds:
            raise ValueError(f"tuning_seed must be none of seeds={self.seeds}, got {self.tuning_seed}")
        if self.tuning_steps < 1:
            raise ValueError(f"tuning_steps must be at least 1, got {self.tuning_steps}")
        if len({slug(name) for name in self.variants}) < max(len(self.variants), 1):
            raise ValueError(f"names of variants must differ in letters or digits, got {list(self.variants)}")
        for name, variant in self.variants.items():
            if set(variant) != {"changes", "trials"}:
                raise ValueError(f"variant {name!r} needs changes and trials, got {sorted(variant)}")
        numbers = {name: len(variant["trials"]) for name, variant in self.variants.items()}
        if len(set(numbers.values())) != 1 or 0 in numbers.values():
            raise ValueError(f"every variant must have the same number of trials, at least one, got {numbers}")
        for title, evaluation in self.evaluations.items():
            if not {"task", "arguments", "columns"} <= set(evaluation) <= {"task", "arguments", "columns", "only"}:
                raise ValueError(f"evaluation {title!r} needs task, arguments and columns, got {sorted(evaluation)}")


def slug(name: str) -> str:
    """A variant's name as part of a file's."""
    return re.sub(r"\W+", "_", name)


@dataclass
class FDTTrainingOptions:
    """What FDT adds to transformers' TrainingArguments."""

    logit_scale_min: float | None = field(
        default=None,
        metadata={"help": "Clamp logit_scale, a natural logarithm, from below before and after each step."},
    )
    logit_scale_max: float | None = field(default=None, metadata={"help": "Likewise from above."})
    temperature_decay: float | None = field(
        default=None,
        metadata={"help": "Factor on the temperature of grounding for every temperature_decay_steps steps."},
    )
    temperature_decay_steps: int | None = field(default=None, metadata={"help": "See temperature_decay."})
    temperature_min: float | None = field(default=None, metadata={"help": "Floor of the decaying temperature."})
    freeze: list[str] | None = field(
        default=None,
        metadata={
            "help": "Towers that do not train: vision_tower, text_tower or both; vision_tower[:-2] is all of it but "
            "its last 2 layers."
        },
    )
    target_active_codes: float | None = field(
        default=None,
        metadata={"help": "Steer the temperature so that after 4/5 of the steps an image has so many active codes."},
    )
    dead_code_steps: int = field(
        default=1000, metadata={"help": "A code is dead when no image or caption used it for this many steps."}
    )
    reseed_dead_codes: bool = field(
        default=False, metadata={"help": "Every dead_code_steps steps, put token features in place of dead codes."}
    )
    usage_entropy_weight: float = field(
        default=0.0, metadata={"help": "Reward in the loss, per nat, for the entropy of mean code weights."}
    )

    def __post_init__(self):
        if None not in (self.logit_scale_min, self.logit_scale_max) and self.logit_scale_min > self.logit_scale_max:
            raise ValueError(
                f"logit_scale_min must not exceed logit_scale_max, got {self.logit_scale_min} > {self.logit_scale_max}"
            )
        if self.temperature_decay is None:
            for name in ("temperature_decay_steps", "temperature_min"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs temperature_decay, got {name}={getattr(self, name)} alone")
        else:
            for name in ("temperature_decay", "temperature_decay_steps"):
                if (getattr(self, name) or 0) <= 0:
                    raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.target_active_codes is not None:
            if self.target_active_codes < 1:
                raise ValueError(f"target_active_codes must be at least 1, got {self.target_active_codes}")
            if self.temperature_decay is not None:
                raise ValueError("target_active_codes steers the temperature, and so does temperature_decay: give one")
        if self.dead_code_steps < 1:
            raise ValueError(f"dead_code_steps must be at least 1, got {self.dead_code_steps}")
        if self.usage_entropy_weight < 0:
            raise ValueError(f"usage_entropy_weight must be at least 0, got {self.usage_entropy_weight}")


def _load_training_arguments() -> type:
    from run_scripts.training.trainer import FDTTrainingArguments

    return FDTTrainingArguments


TRAINING_ARGUMENTS = LateArguments(
    preview=FDTTrainingOptions,
    note="Every field of transformers.TrainingArguments is a flag too, such as --output_dir, --max_steps, "
    "--learning_rate: https://huggingface.co/docs/transformers/main_classes/trainer",
    load=_load_training_arguments,
)
PRETRAINING = (ModelArguments, DataArguments, TRAINING_ARGUMENTS, ObjectiveArguments)
STUDY = (StudyArguments,)
FINE_TUNING = (FineTuningArguments, FineTuningDataArguments, TRAINING_ARGUMENTS)
