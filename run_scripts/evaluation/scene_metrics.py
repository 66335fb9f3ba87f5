# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Everything that is measured of a model on scenes, by the tasks of `run_evaluation`, and the headings of a table."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.data.scene_grammar import KINDS
from run_scripts.data.scenes import FALSE_CAPTIONS_NAME
from run_scripts.evaluation.arguments import (
    CodesArguments,
    CompletenessArguments,
    ConceptsArguments,
    LocalizationArguments,
    RetrievalArguments,
    TaggingArguments,
)
from run_scripts.evaluation.codes import evaluate_codes
from run_scripts.evaluation.completeness import evaluate_completeness
from run_scripts.evaluation.concepts import CodeMatch, find_codes
from run_scripts.evaluation.localization import evaluate_localization
from run_scripts.evaluation.results import Metric
from run_scripts.evaluation.retrieval import evaluate_retrieval
from run_scripts.evaluation.tagging import evaluate_tagging


TEMPLATE = "a {}"  # what captions of scenes say of a thing


def evaluate_scenes(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: str, split: str, seed: int
) -> tuple[dict[str, Metric], CodeMatch]:
    """Retrieval, tagging, localization and codes on one split of scenes.

    Args:
        model, processor: a model with codes.
        dataset: what `prepare_scenes` has written; `validation` chooses the code of each concept, and its images are
            what the control of tagging looks up.
        split: to test on.
        seed: of all that is drawn.

    Returns:
        Metrics by name, and the code of every concept.
    """
    common = {"model": model.name_or_path, "dataset": dataset, "split": split, "seed": seed}
    named = {**common, "templates": TEMPLATE}
    concepts, matches = find_codes(model, processor, ConceptsArguments(**named))
    evaluations = (
        evaluate_retrieval(model, processor, RetrievalArguments(**common, merge_equal_captions=True)),
        evaluate_tagging(model, processor, TaggingArguments(**named, train_split="validation")),
        evaluate_localization(model, processor, LocalizationArguments(**named)),
        concepts,
        evaluate_codes(model, processor, CodesArguments(**common)),
    )
    metrics = {name: metric for evaluation in evaluations for name, metric in evaluation.metrics.items()}
    metrics["alive_codes"] = Metric(1 - metrics["dead_codes"].value)
    return metrics, matches["concept"]


def evaluate_false_captions(model: PreTrainedModel, processor: ProcessorMixin, dataset: str) -> dict[str, Metric]:
    """How often the true caption beats a false one, by what is false in it; `dataset` as for `evaluate_scenes`."""
    folder = str(Path(dataset) / FALSE_CAPTIONS_NAME)
    arguments = CompletenessArguments(model=model.name_or_path, dataset=folder, split="+".join(KINDS))
    return evaluate_completeness(model, processor, arguments).metrics


HEADINGS = {
    **{f"image_to_text_R@{k}": f"image to text, R@{k}" for k in (1, 5)},
    **{f"text_to_image_R@{k}": f"text to image, R@{k}" for k in (1, 5)},
    "mean_average_precision": "tagging, mean average precision",
    "precision": "tagging, right of as many names as things",
    "precision_by_codes": "the same by codes alone",
    "pointing_game": "heat map of a name: strongest on the thing",
    "box_iou": "heat map of a name: IoU with the box",
    "mask_iou": "heat map of a name: IoU with the mask",
    "concept_f1": "F1 of a concept's code",
    "concept_named": "concepts whose code fires for the name",
    "attribute_named": "attributes whose code fires for the name",
    "action_named": "actions whose code fires for the name",
    "similarity_from_shared_codes": "similarity from codes that both have",
    "active_per_image": "active codes per image",
    "active_per_caption": "active codes per caption",
    "alive_codes": "codes that fire at all",
    "accuracy": "true caption before a false one",
    **{f"accuracy_{kind}": f"where the {kind} is false" for kind in KINDS},
}


def list_scene_rows(metrics: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The metrics that a table shows, by their headings and in their order; others are left out.

    Args:
        metrics: by name, each with the fields of `Metric`.
    """
    return {heading: metrics[name] for name, heading in HEADINGS.items() if name in metrics}
