# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Localization: does the part of an image that speaks for a concept's name lie where the concept is?"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPModel, PreTrainedModel, ProcessorMixin

from modeling_fdt import FDTModel, FDTProcessor
from modeling_fdt.explanation_fdt import find_patch_grid, get_patch_grid, resample_heat_maps
from modeling_fdt.towers_fdt import get_patch_size
from run_scripts.data.source import open_source
from run_scripts.evaluation.arguments import LocalizationArguments
from run_scripts.evaluation.embedding import iterate_batches
from run_scripts.evaluation.inputs import describe_data, read_images
from run_scripts.evaluation.prompts import embed_classes, load_templates
from run_scripts.evaluation.results import Evaluation, Metric
from run_scripts.evaluation.truth import collect_names, read_masks, read_objects
from run_scripts.evaluation.truth_metrics import chance_iou, equal_area_iou, is_inside, points_at


@torch.inference_mode()
def embed_patches(
    model: PreTrainedModel, pixel_values: torch.Tensor
) -> tuple[torch.Tensor, tuple[int, int], torch.Tensor | None]:
    """What names are compared with at every patch.

    Args:
        model: an FDTModel, or transformers' CLIPModel.
        pixel_values: (batch_size, 3, height, width), normalised.

    Returns:
        Vectors (batch_size, num_patches, dim), row by row; the grid, (height, width); and for a model with codes the
        code weights of the images. A patch's score for a caption is the product of its vector and the caption's
        embedding. For FDT the vectors are queries, and the score is, but for a positive factor, the sum over codes of
        the caption's weight of the code times the code's score at the patch. For CLIP they are what becomes of a patch
        where CLIP's class token goes, the last norm and the projection, of length 1.

    Raises:
        ValueError: the model is of another class.
    """
    if isinstance(model, FDTModel):
        output = model(pixel_values=pixel_values)
        queries, _ = model.get_token_queries(output, pixel_values)
        grid = get_patch_grid(model, output.vision_model_output.last_hidden_state, pixel_values)
        return queries, grid, output.image_code_weights
    if isinstance(model, CLIPModel):
        patches = model.vision_model(pixel_values=pixel_values).last_hidden_state[:, 1:]
        vectors = model.visual_projection(model.vision_model.post_layernorm(patches))
        patch_size = get_patch_size(model.config.vision_config)
        grid = find_patch_grid(vectors.shape[1], pixel_values.shape[2:], patch_size)
        return F.normalize(vectors, dim=-1), grid, None
    raise ValueError(f"localization needs an FDTModel or a CLIPModel, got a {type(model).__name__}")


def draw_codes(code_weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """For every image one of its active codes, drawn at random with equal chances; (batch_size,) integers."""
    noise = torch.rand(code_weights.shape, generator=generator)
    return noise.masked_fill(code_weights.cpu() <= 0, -1).argmax(dim=1)


@dataclass
class PatchScores:
    """What the patches of an image score, and where they lie.

    Attributes:
        scores: (num_captions, grid_height, grid_width), one map for each caption that was asked for.
        control: (1, grid_height, grid_width), the scores of one active code of the image, drawn at random; None for a
            model without codes.
        box: what the grid covers: left, top, right, bottom in pixels of the image.
        size: height and width of the image in pixels.
    """

    scores: torch.Tensor
    control: torch.Tensor | None
    box: tuple[float, float, float, float]
    size: tuple[int, int]

    def find_centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the rows and the columns of patches have their centres, in pixels of the image."""
        left, top, right, bottom = self.box
        sides = ((top, bottom, self.scores.shape[1]), (left, right, self.scores.shape[2]))
        ys, xs = (start + (np.arange(number) + 0.5) * (end - start) / number for start, end, number in sides)
        return ys, xs


def iterate_patch_scores(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Iterable[Image.Image],
    captions: Iterable[torch.Tensor],
    batch_size: int,
    seed: int,
) -> Iterator[PatchScores]:
    """Scores at the patches of every image, one map for each caption that is asked for.

    Args:
        model, processor: see `embed_patches`.
        images: upright.
        captions: for every image (num_captions, dim) embeddings.
        batch_size: how many images the model takes at once.
        seed: of the codes that are drawn for the control.
    """
    get_crop_box = FDTProcessor(processor.image_processor, processor.tokenizer).get_crop_box
    generator = torch.Generator().manual_seed(seed)
    captions = iter(captions)
    for batch in iterate_batches(images, batch_size):
        inputs = processor(images=batch, return_tensors="pt")
        patches, grid, code_weights = embed_patches(model, inputs["pixel_values"].to(model.device))
        patches, controls = patches.float().cpu(), [None] * len(batch)
        if code_weights is not None:
            codes = model.codebook.detach().float().cpu()[draw_codes(code_weights, generator)]
            controls = (patches @ codes[:, :, None]).mT.unflatten(-1, grid)
        for image, vectors, control, embeds in zip(
            batch, patches, controls, islice(captions, len(batch)), strict=True
        ):
            size = (image.height, image.width)
            yield PatchScores((embeds @ vectors.T).unflatten(-1, grid), control, get_crop_box(size), size)


def gather_truth(
    objects: list[dict], masks: list[np.ndarray] | None, patches: PatchScores
) -> dict[str, dict[str, np.ndarray]]:
    """By concept, the patches with their centre in one of its boxes (`pointing_game`), all pixels in its boxes
    (`box_iou`), and, where there are masks, all pixels in its masks (`mask_iou`).

    Args:
        objects, masks: of one image, as `read_objects` and `read_masks` give them.
        patches: of that image.

    Raises:
        ValueError: a mask has another size than the image.
    """
    centres, pixels = patches.find_centres(), [np.arange(side) + 0.5 for side in patches.size]
    truth: dict[str, dict[str, np.ndarray]] = {}
    for position, thing in enumerate(objects):
        parts = {"pointing_game": is_inside(thing["box"], *centres), "box_iou": is_inside(thing["box"], *pixels)}
        if masks is not None:
            parts["mask_iou"] = masks[position]
            if masks[position].shape != patches.size:
                raise ValueError(
                    f"masks must have the size of their image, {patches.size}, got {masks[position].shape}"
                )
        so_far = truth.setdefault(thing["concept"], {})
        so_far.update({name: part | so_far.get(name, False) for name, part in parts.items()})
    return truth


def score_map(scores: np.ndarray, heat_map: np.ndarray, truth: dict[str, np.ndarray]) -> dict[str, float]:
    """Every metric of one concept in one image.

    Args:
        scores: (grid_height, grid_width).
        heat_map: (height, width), the same scores over the pixels.
        truth: by metric, as `gather_truth` gives it.
    """
    overlaps = {name: equal_area_iou(heat_map, part) for name, part in truth.items() if name != "pointing_game"}
    return {"pointing_game": float(points_at(scores, truth["pointing_game"])), **overlaps}


def score_chance(heat_map: np.ndarray, truth: dict[str, np.ndarray]) -> dict[str, float]:
    """What `score_map` gives on average for scores in random order."""
    overlaps = {name: chance_iou(heat_map, part) for name, part in truth.items() if name != "pointing_game"}
    return {"pointing_game": float(truth["pointing_game"].mean()), **overlaps}


def evaluate_localization(
    model: PreTrainedModel, processor: ProcessorMixin, arguments: LocalizationArguments
) -> Evaluation:
    """Ask for every concept that an image shows by its name, and compare the heat map with the truth."""
    dataset = open_source(arguments, objects="objects")
    objects = read_objects(dataset)
    asked = [list(dict.fromkeys(thing["concept"] for thing in things)) for things in objects]
    names = collect_names(asked)
    embeds = embed_classes(model, processor, names, load_templates(arguments.templates), arguments.batch_size).embeds
    positions = {name: position for position, name in enumerate(names)}
    captions = (embeds[[positions[name] for name in of_image]] for of_image in asked)
    has_masks = "masks" in dataset.column_names
    masks = read_masks(dataset, objects) if has_masks else [None] * len(dataset)
    images = read_images(dataset)
    maps = iterate_patch_scores(model, processor, images, captions, arguments.batch_size, arguments.seed)

    found, by_chance, by_control, num_hidden = [], [], [], 0
    for patches, things, of_image in zip(maps, objects, masks, strict=True):
        if not things:
            continue
        all_scores = patches.scores if patches.control is None else torch.cat([patches.scores, patches.control])
        heat_maps = resample_heat_maps(all_scores, patches.box, patches.size).numpy()
        all_scores, is_seen = all_scores.numpy(), ~np.isnan(heat_maps[0])
        for position, truth in enumerate(gather_truth(things, of_image, patches).values()):
            if not all((part & is_seen).any() for name, part in truth.items() if name != "pointing_game"):
                num_hidden += 1
                continue
            found.append(score_map(all_scores[position], heat_maps[position], truth))
            by_chance.append(score_chance(heat_maps[position], truth))
            if patches.control is not None:
                by_control.append(score_map(all_scores[-1], heat_maps[-1], truth))
    if not found:
        raise ValueError("the model sees none of the objects")
    metrics = {name: Metric(mean_of(found, name), mean_of(by_chance, name)) for name in found[0]}
    for name, metric in metrics.items():
        metric.control = mean_of(by_control, name) if by_control else None
    columns = ["image", "objects", *(["masks"] if has_masks else [])]
    return Evaluation(
        metrics=metrics,
        headline=arguments.metric,
        data=[describe_data(arguments.dataset, arguments.split, dataset, columns)],
        counts={"images": len(dataset), "concepts_in_images": len(found), "hidden_by_the_crop": num_hidden},
    )


def mean_of(scores: list[dict[str, float]], name: str) -> float:
    return sum(of_map[name] for of_map in scores) / len(scores)
