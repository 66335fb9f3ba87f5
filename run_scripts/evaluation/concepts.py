# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Codes against truth: is there a code for each concept, attribute and action, and does it mean the same in words?"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from scipy.sparse import csr_array
from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.data.source import open_source
from run_scripts.evaluation.arguments import ConceptsArguments
from run_scripts.evaluation.codes import count_codes
from run_scripts.evaluation.embedding import iterate_image_features
from run_scripts.evaluation.inputs import describe_data, read_images
from run_scripts.evaluation.prompts import embed_classes, load_templates
from run_scripts.evaluation.results import Chart, Evaluation, Metric
from run_scripts.evaluation.truth import all_names, read_concepts, read_objects, truth_matrix
from run_scripts.evaluation.truth_metrics import (
    always_f1,
    best_codes,
    f1_of,
    f1_scores,
    fires_for_name,
    single_concepts,
)


NUM_SHOWN = 20  # bars of a chart


@dataclass
class Sightings:
    """What the images of a split show, and which codes fire for them.

    Attributes:
        active: (num_images, codebook_size) boolean.
        names: by kind (concept, attribute, action), the names of what each image shows.
    """

    active: csr_array
    names: dict[str, list[list[str]]]


@dataclass
class CodeMatch:
    """The code of every name.

    Attributes:
        names: of one kind.
        codes: (num_names,) the code that was chosen for each; -1 where none fires with it.
        f1: (num_names,) of these codes, on the split that they were not chosen on.
        is_named: (num_names,) boolean, whether the code fires for the name as a caption.
    """

    names: list[str]
    codes: np.ndarray
    f1: np.ndarray
    is_named: np.ndarray

    def list_best(self, number: int) -> list[int]:
        """The codes that are named and have the highest F1, the best first, each once."""
        order = np.argsort(-np.where(self.is_named, self.f1, -1), kind="stable")
        return list(dict.fromkeys(self.codes[[place for place in order if self.is_named[place]]].tolist()))[:number]


def read_sightings(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: Dataset, arguments: ConceptsArguments
) -> Sightings:
    """Embed the images of a split, and read the truth about them; attributes and actions where it has `objects`."""
    names = {"concept": read_concepts(dataset)}
    if "objects" in dataset.column_names:
        objects = read_objects(dataset)
        for kind, column in (("attribute", "attributes"), ("action", "actions")):
            names[kind] = [sorted({name for thing in things for name in thing[column]}) for things in objects]
    images = read_images(dataset)
    counts = count_codes(iterate_image_features(model, processor, images, arguments.batch_size))
    return Sightings(counts.weights > 0, names)


def match_codes(
    validation: Sightings,
    test: Sightings,
    kind: str,
    names: list[str],
    name_active: csr_array,
    generator: np.random.Generator,
) -> tuple[dict[str, Metric], CodeMatch]:
    """The code of every name, chosen on one split and tested on another.

    Args:
        validation, test: the splits; each of the names is shown in both.
        kind: of the names.
        names: at least two.
        name_active: (num_names, codebook_size) boolean, which codes fire for each name as a caption.
        generator: draws the order of the images in the control of F1.

    Returns:
        `KIND_f1`: mean F1 of the codes on test; chance is a code that fires for every image, the control are codes
        that were chosen and tested on images in random order. `KIND_named`: share of the names for which their code
        fires too; chance is its base rate, the share of the other names for which it does. And the codes.
    """
    truths = [truth_matrix(split.names[kind], names) for split in (validation, test)]
    actives = (validation.active, test.active)
    scores = [f1_scores(active, truth) for active, truth in zip(actives, truths, strict=True)]
    codes = best_codes(scores[0])
    mixed = [f1_scores(active, generator.permutation(truth)) for active, truth in zip(actives, truths, strict=True)]
    own, base_rates = fires_for_name(codes, name_active)
    f1 = f1_of(codes, scores[1])
    metrics = {
        f"{kind}_f1": Metric(
            float(f1.mean()),
            float(always_f1(truths[1]).mean()),
            control=float(f1_of(best_codes(mixed[0]), mixed[1]).mean()),
        ),
        f"{kind}_named": Metric(float(own.mean()), float(base_rates.mean())),
    }
    return metrics, CodeMatch(names, codes, f1, own)


def share_of_single(
    validation: Sightings, test: Sightings, names: list[str], mix: Callable[[np.ndarray], np.ndarray]
) -> float:
    """Share of the codes that fire for some test image which answer to one concept only, the same in both splits."""
    found = [
        single_concepts(split.active, mix(truth_matrix(split.names["concept"], names))) for split in (validation, test)
    ]
    fires = test.active.sum(axis=0) > 0
    return float(((found[0] == found[1]) & (found[0] >= 0) & fires).sum() / fires.sum())


def evaluate_concepts(model: PreTrainedModel, processor: ProcessorMixin, arguments: ConceptsArguments) -> Evaluation:
    """Choose the code of every concept, attribute and action on one split, and test it on another."""
    return find_codes(model, processor, arguments)[0]


def find_codes(
    model: PreTrainedModel, processor: ProcessorMixin, arguments: ConceptsArguments
) -> tuple[Evaluation, dict[str, CodeMatch]]:
    """What `evaluate_concepts` gives, and by kind the codes that it has found."""
    splits = {
        split: open_source(arguments, split, concepts="concepts")
        for split in (arguments.validation_split, arguments.split)
    }
    if len(splits) < 2:
        raise ValueError(f"validation_split must be another split than split={arguments.split!r}")
    validation, test = (read_sightings(model, processor, dataset, arguments) for dataset in splits.values())
    generator, templates = np.random.default_rng(arguments.seed), load_templates(arguments.templates)
    metrics, matches = {}, {}
    counts = {"images": test.active.shape[0], "codes": test.active.shape[1]}
    for kind in test.names:
        names = sorted(all_names(validation.names[kind]) & all_names(test.names[kind]))
        counts[f"{kind}s"] = len(names)
        counts[f"{kind}s_in_one_split_only"] = len(all_names(validation.names[kind] + test.names[kind])) - len(names)
        if len(names) < 2 and kind == "concept":
            raise ValueError(f"at least 2 concepts must be shown in both splits, got {names}")
        if len(names) < 2:
            continue
        classes = embed_classes(model, processor, names, templates, arguments.batch_size)
        name_active = count_codes([classes]).weights > 0
        found, matches[kind] = match_codes(validation, test, kind, names, name_active, generator)
        metrics.update(found)
        if kind == "concept":
            metrics["single_concept_codes"] = Metric(
                share_of_single(validation, test, names, lambda truth: truth),
                share_of_single(validation, test, names, generator.permutation),
            )
    columns = ["image", "concepts", *(["objects"] if "attribute" in test.names else [])]
    evaluation = Evaluation(
        metrics=metrics,
        headline=arguments.metric,
        data=[describe_data(arguments.dataset, split, splits[split], columns) for split in reversed(splits)],
        counts=counts,
        charts=[chart_f1(match.f1, match.names, kind) for kind, match in matches.items()],
    )
    return evaluation, matches


def chart_f1(f1: np.ndarray, names: list[str], kind: str) -> Chart:
    """F1 of the codes of the names that have the best ones."""
    order = (-f1).argsort(kind="stable")[:NUM_SHOWN]
    title = f"F1 of the code of each {kind}" + (f": the best {NUM_SHOWN}" if len(names) > NUM_SHOWN else "")
    return Chart(title=title, kind="bar", series={"F1": [(names[place], float(f1[place])) for place in order]})
