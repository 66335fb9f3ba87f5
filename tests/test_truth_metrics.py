# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Metrics against truth by hand and against scikit-learn, and the tasks that use them on made-up rows with boxes."""

import math

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from scipy.sparse import csr_array
from sklearn.metrics import f1_score
from transformers import CLIPConfig, CLIPModel

from run_scripts.arguments import parse_arguments
from run_scripts.evaluation import concepts, localization, tagging, truth_metrics
from run_scripts.evaluation.arguments import TASKS
from run_scripts.evaluation.embedding import Features, embed_captions
from run_scripts.evaluation.results import Evaluation
from run_scripts.evaluation.tasks import EVALUATIONS
from run_scripts.evaluation.truth import read_concepts, read_masks, read_objects, truth_matrix


# Tagging


def test_average_precision_by_hand():
    scores = np.array([[0.9, 0.1], [0.8, 0.1], [0.7, 0.1], [0.6, 0.1]])
    is_relevant = np.array([[True, True], [False, False], [True, False], [False, False]])
    # The relevant rows of the first column are at places 1 and 3; equal scores give the prevalence.
    assert truth_metrics.average_precisions(scores, is_relevant) == pytest.approx([(1 + 2 / 3) / 2, 1 / 4])


def test_precision_at_the_number_of_relevant_columns():
    scores = np.array([[3, 2, 1, 0], [3, 2, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]])
    is_relevant = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    # Both, one of two, none (a tie counts against the model); the last row has nothing to find.
    assert truth_metrics.precision_at_number(scores, is_relevant) == pytest.approx((1 + 1 / 2 + 0) / 3)


@pytest.mark.parametrize(
    "scores, is_relevant, message",
    [
        (np.zeros((2, 3)), np.ones((3, 2), dtype=bool), "one shape"),
        (np.full((2, 1), np.nan), np.ones((2, 1), dtype=bool), "finite"),
        (np.zeros((2, 1)), np.zeros((2, 1), dtype=bool), "at least one relevant row"),
    ],
)
def test_bad_scores_are_refused(scores, is_relevant, message):
    with pytest.raises(ValueError, match=message):
        truth_metrics.average_precisions(scores, is_relevant)


def test_random_tags_reach_chance():
    generator = np.random.default_rng(0)
    is_shown = generator.random((2000, 10)) < 0.2
    metrics = tagging.tagging_metrics(generator.random((2000, 10)), is_shown)
    for metric in metrics.values():
        assert metric.value == pytest.approx(metric.chance, abs=0.02)  # of 400 rows a column, 10 columns


def test_neighbours_vote():
    shown = np.array([[True, False], [True, True], [False, True]])
    scores = tagging.neighbour_scores(np.array([[0.0], [1.0], [9.0]]), shown, np.array([[8.0]]))
    assert scores.tolist() == [[2 / 3, 2 / 3]]  # there are only three


# Localization


HEAT_MAP = np.array([[0.1, 0.2, 0.3], [0.4, 0.9, 0.6], [np.nan, np.nan, np.nan]])


def at(*pixels: tuple[int, int]) -> np.ndarray:
    truth = np.zeros((3, 3), dtype=bool)
    for pixel in pixels:
        truth[pixel] = True
    return truth


def test_the_pointing_game_by_hand():
    scores = np.array([[0.1, 0.2, 0.3], [0.4, 0.9, 0.6], [0.0, 0.0, 0.0]])
    assert truth_metrics.points_at(scores, at((1, 1)))
    assert not truth_metrics.points_at(scores, at((1, 2), (0, 0)))
    assert not truth_metrics.points_at(np.ones((3, 3)), at((1, 1)))  # a tie
    assert not truth_metrics.points_at(scores, at()) and truth_metrics.points_at(scores, at() | True)


def test_overlap_by_hand():
    # The two highest are (1, 1) and (1, 2); of the third row the model sees nothing.
    assert truth_metrics.equal_area_iou(HEAT_MAP, at((1, 1), (1, 2), (2, 1))) == 1
    assert truth_metrics.equal_area_iou(HEAT_MAP, at((1, 1), (0, 0))) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="sees nothing"):
        truth_metrics.equal_area_iou(HEAT_MAP, at((2, 2)))


def test_pixels_that_tie_count_by_the_share_that_is_true():
    heat_map = np.array([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    # Of the three highest one is right for sure; of the two that tie for two places one is right.
    assert truth_metrics.equal_area_iou(heat_map, at((0, 1), (0, 0), (2, 2))) == pytest.approx(2 / 4)
    truth = at((0, 1), (0, 0))
    assert truth_metrics.equal_area_iou(np.ones((3, 3)), truth) == pytest.approx(
        truth_metrics.chance_iou(np.ones((3, 3)), truth)
    )


def test_random_heat_maps_reach_chance():
    generator = np.random.default_rng(0)
    truth = np.zeros((20, 20), dtype=bool)
    truth[3:9, 5:12] = True
    maps = generator.random((500, 20, 20))
    found = np.mean([truth_metrics.points_at(heat_map, truth) for heat_map in maps])
    assert found == pytest.approx(truth.mean(), abs=4 * math.sqrt(truth.mean() / 500))
    overlap = np.mean([truth_metrics.equal_area_iou(heat_map, truth) for heat_map in maps])
    assert overlap == pytest.approx(truth_metrics.chance_iou(maps[0], truth), abs=0.01)


def test_boxes_hold_points():
    inside = truth_metrics.is_inside([0.6, 1, 2.5, 2], np.arange(3) + 0.5, np.arange(4) + 0.5)
    assert np.argwhere(inside).tolist() == [[1, 1]]


def test_boxes_and_masks_of_one_concept_are_joined():
    # Two patches side by side over the right four of six columns.
    patches = localization.PatchScores(torch.zeros(1, 1, 2), None, (2.0, 0.0, 6.0, 1.0), (1, 6))
    assert [places.tolist() for places in patches.find_centres()] == [[0.5], [3.0, 5.0]]
    things = [{"concept": name, "box": [x, 0, x + 1, 1]} for name, x in (("dog", 0), ("cat", 1), ("dog", 3))]
    masks = [np.zeros((1, 6), dtype=bool) for _ in things]
    masks[2][0, 3] = True
    truth = localization.gather_truth(things, masks, patches)
    assert truth["dog"]["box_iou"].tolist() == [[True, False, False, True, False, False]]
    assert truth["dog"]["mask_iou"].tolist() == [[False, False, False, True, False, False]]
    assert truth["dog"]["pointing_game"].tolist() == [[True, False]]
    assert set(localization.gather_truth(things, None, patches)["cat"]) == {"pointing_game", "box_iou"}
    with pytest.raises(ValueError, match=r"size of their image, \(1, 6\), got \(6, 1\)"):
        localization.gather_truth(things, [mask.T for mask in masks], patches)


def test_scores_at_patches_are_the_sum_over_codes_of_explain(tiny_model, tiny_processor, images):
    inputs = tiny_processor(images=images, text=["a cat"], return_tensors="pt")
    queries, grid, weights = localization.embed_patches(tiny_model, inputs["pixel_values"])
    with torch.no_grad():
        outputs = tiny_model(**inputs)
    ours = (queries @ outputs.text_embeds[0]).unflatten(1, grid)
    active = outputs.text_code_weights[0].nonzero()[:, 0]
    explained = tiny_model.explain(**inputs, codes=active)
    summed = (explained.text_weights[0][:, None, None] * explained.patch_scores).sum(dim=1)
    factor = (outputs.text_code_weights[0] @ tiny_model.codebook).norm() / tiny_model.config.codebook_dim**0.5
    torch.testing.assert_close(ours * factor, summed, rtol=0, atol=1e-5)
    torch.testing.assert_close(weights, outputs.image_code_weights)


def test_the_control_draws_active_codes():
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.5]]).repeat(400, 1)
    drawn = localization.draw_codes(weights, torch.Generator().manual_seed(0))
    counts = drawn.bincount(minlength=4).tolist()
    assert counts[0] == counts[2] == 0 and min(counts[1], counts[3]) > 150  # 200 expected, deviation 10


def test_the_class_token_of_clip_goes_where_patches_go():
    clip = build_clip()
    pixels = torch.randn(2, 3, 32, 32)
    vectors, grid, weights = localization.embed_patches(clip, pixels)
    assert vectors.shape == (2, 16, 16) and grid == (4, 4) and weights is None
    with torch.no_grad():
        token = clip.vision_model(pixel_values=pixels).last_hidden_state[:, 1]
        expected = clip.visual_projection(clip.vision_model.post_layernorm(token))
    torch.testing.assert_close(vectors[:, 0], expected / expected.norm(dim=-1, keepdim=True))
    with pytest.raises(ValueError, match="needs an FDTModel or a CLIPModel, got a CLIPVisionModel"):
        localization.embed_patches(clip.vision_model, pixels)


def build_clip() -> CLIPModel:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 49409, "eos_token_id": 49408},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    return CLIPModel(config).eval()


# Codes against truth


# Code 0 fires with concept 0, code 1 always, code 2 with concept 1 and once more, code 3 never.
ACTIVE = csr_array(np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0]], dtype=bool))
TRUTH = np.array([[True, False], [True, False], [False, True], [False, True]])


def test_f1_equals_that_of_scikit_learn():
    f1 = truth_metrics.f1_scores(ACTIVE, TRUTH)
    assert f1.shape == (2, 4)
    for concept in range(2):
        for code in range(4):
            expected = f1_score(TRUTH[:, concept], ACTIVE.toarray()[:, code], zero_division=0)
            assert f1[concept, code] == pytest.approx(expected)
    assert f1[:, 1] == pytest.approx(truth_metrics.always_f1(TRUTH))
    assert truth_metrics.best_codes(f1).tolist() == [0, 2]
    assert truth_metrics.f1_of(np.array([0, 2]), f1) == pytest.approx([1, 0.8])


def test_a_concept_without_any_code_has_none():
    f1 = truth_metrics.f1_scores(csr_array(np.zeros((4, 3), dtype=bool)), TRUTH)
    codes = truth_metrics.best_codes(f1)
    assert codes.tolist() == [-1, -1] and truth_metrics.f1_of(codes, f1).tolist() == [0, 0]
    own, base_rates = truth_metrics.fires_for_name(codes, csr_array(np.ones((2, 3), dtype=bool)))
    assert not own.any() and not base_rates.any()


def test_names_by_hand():
    name_active = csr_array(np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=bool))
    own, base_rates = truth_metrics.fires_for_name(np.array([0, 1, 2]), name_active)
    assert own.tolist() == [True, True, False] and base_rates.tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="at least 2 names, got 1"):
        truth_metrics.fires_for_name(np.array([0]), name_active)


def test_codes_of_one_concept_by_hand():
    # Code 1 has each concept in just half of its images; code 2 has concept 1 in two of three.
    assert truth_metrics.single_concepts(ACTIVE, TRUTH).tolist() == [0, -1, 1, -1]
    both = np.ones((4, 2), dtype=bool)
    assert truth_metrics.single_concepts(ACTIVE, both).tolist() == [-1, -1, -1, -1]


def test_codes_are_chosen_on_one_split_and_tested_on_the_other():
    names = [["a"], ["a"], ["b"], ["b"]]
    validation = concepts.Sightings(ACTIVE, {"concept": names})
    test = concepts.Sightings(ACTIVE[[0, 2, 2, 3]], {"concept": names})
    name_active = csr_array(np.array([[1, 0, 0, 0], [1, 0, 0, 0]], dtype=bool))
    metrics, match = concepts.match_codes(
        validation, test, "concept", ["a", "b"], name_active, np.random.default_rng(0)
    )
    # On the test images code 0 fires for one of two of "a", code 2 for both of "b" and once more.
    assert match.codes.tolist() == [0, 2] and match.is_named.tolist() == [True, False]
    assert match.f1 == pytest.approx([2 / 3, 0.8]) and metrics["concept_f1"].value == pytest.approx(11 / 15)
    assert metrics["concept_f1"].chance == pytest.approx(2 / 3) and metrics["concept_f1"].control is not None
    assert metrics["concept_named"].value == 0.5 and metrics["concept_named"].chance == 0.5
    # Codes 0 and 2 mean the same in both; of the three that fire in test images.
    assert concepts.share_of_single(validation, test, ["a", "b"], lambda truth: truth) == pytest.approx(2 / 3)


# Rows with boxes


def scene(number: int) -> dict:
    """A scene of a circle and, on odd numbers, a square; things are coloured and the circle rolls."""
    pixels = np.zeros((40, 48, 3), dtype=np.uint8)
    pixels[11:19, 4:16] = (200, number, 0)
    things = [{"concept": "circle", "attributes": ["red"], "actions": ["rolling"], "box": [4.0, 11.0, 16.0, 19.0]}]
    masks = [np.zeros((40, 48), dtype=np.uint8)]
    masks[0][12:18, 5:15] = 255
    if number % 2:
        pixels[20:30, 30:40] = (0, 0, 200 + number)
        things.append(
            {"concept": "square", "attributes": ["blue", "big"], "actions": [], "box": [30.0, 20.0, 40.0, 30.0]}
        )
        masks.append(np.zeros((40, 48), dtype=np.uint8))
        masks[1][20:30, 30:40] = 255
    return {
        "image": Image.fromarray(pixels),
        "caption": " and ".join(thing["concept"] for thing in things),
        "concepts": [thing["concept"] for thing in things],
        "objects": things,
        "masks": [Image.fromarray(mask) for mask in masks],
    }


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> str:
    rows = [scene(number) for number in range(6)]
    features = Dataset.from_list(rows[1:2]).features
    features["masks"] = datasets.List(datasets.Image())
    split = Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)
    folder = str(tmp_path_factory.mktemp("scenes"))
    DatasetDict({"validation": split, "test": split.select(range(1, 6))}).save_to_disk(folder)
    return folder


def run(model, processor, task: str, scenes: str, *flags: str) -> Evaluation:
    (arguments,) = parse_arguments([TASKS[task]], ["--model", "unused", "--dataset", scenes, *flags])
    return EVALUATIONS[type(arguments)](model, processor, arguments)


def test_tagging_of_scenes(tiny_model, tiny_processor, scenes):
    evaluation = run(tiny_model, tiny_processor, "tagging", scenes, "--train_split", "validation", "--batch_size", "2")
    test = datasets.load_from_disk(scenes)["test"]
    with torch.no_grad():
        inputs = tiny_processor(images=test["image"][:], text=["circle", "square"], return_tensors="pt")
        scores = tiny_model(**inputs).logits_per_image
    is_shown = truth_matrix(read_concepts(test), ["circle", "square"])
    expected = truth_metrics.average_precisions(scores.numpy(), is_shown).mean()
    metric = evaluation.metrics["mean_average_precision"]
    assert metric.value == pytest.approx(expected) and metric.chance == pytest.approx((5 + 3) / 10)
    assert metric.control is not None and evaluation.counts == {"images": 5, "concepts": 2}
    assert set(evaluation.metrics) == {
        *("mean_average_precision", "precision"),
        *("mean_average_precision_by_codes", "precision_by_codes"),
    }
    alone = run(build_clip(), tiny_processor, "tagging", scenes)
    assert set(alone.metrics) == {"mean_average_precision", "precision"}
    assert alone.metrics["precision"].control is None


def test_localization_of_scenes(tiny_model, tiny_processor, scenes):
    evaluation = run(tiny_model, tiny_processor, "localization", scenes, "--batch_size", "2")
    assert list(evaluation.metrics) == ["pointing_game", "box_iou", "mask_iou"]
    # The model sees 32 x 32 of 32 x 38, in the image columns 3.8 to 44.2: 40 x 40 pixels, in 4 x 4 patches. In the
    # circle's box lie the centre of one patch and 12 x 8 pixels, in the square's one and 10 x 10.
    assert evaluation.metrics["pointing_game"].chance == pytest.approx(1 / 16)
    areas = [96 / 1600] * 5 + [100 / 1600] * 3
    assert evaluation.metrics["box_iou"].chance == pytest.approx(np.mean([a / (2 - a) for a in areas]))
    for metric in evaluation.metrics.values():
        assert 0 <= metric.value <= 1 and 0 <= metric.control <= 1
    assert evaluation.counts == {"images": 5, "concepts_in_images": 8, "hidden_by_the_crop": 0}
    assert run(build_clip(), tiny_processor, "localization", scenes).metrics["mask_iou"].control is None


def test_a_model_that_looks_at_colour_points_at_it(tiny_model, tiny_processor, scenes, monkeypatch):
    def look(model, pixel_values):
        patches = torch.nn.functional.avg_pool2d(pixel_values, 8)
        return patches.flatten(2).transpose(1, 2), (4, 4), None

    def name(model, processor, names, templates, batch_size):
        colors = {"circle": [1.0, 0.0, -1.0], "square": [-1.0, 0.0, 1.0]}
        return Features(torch.tensor([colors[name] for name in names]), None)

    monkeypatch.setattr(localization, "embed_patches", look)
    monkeypatch.setattr(localization, "embed_classes", name)
    metrics = run(tiny_model, tiny_processor, "localization", scenes).metrics
    assert metrics["pointing_game"].value == 1 and metrics["mask_iou"].value > 0.5


def test_codes_of_scenes(tiny_model, tiny_processor, scenes):
    evaluation = run(tiny_model, tiny_processor, "concepts", scenes, "--batch_size", "4")
    assert set(evaluation.metrics) == {
        *("concept_f1", "concept_named", "attribute_f1", "attribute_named", "single_concept_codes"),
    }
    assert evaluation.counts["concepts"] == 2 and evaluation.counts["attributes"] == 3
    assert evaluation.counts["actions"] == 1  # one name has no other to be told from
    names = embed_captions(tiny_model, tiny_processor, ["circle", "square"]).code_weights > 0
    assert evaluation.metrics["concept_named"].value in (0, 0.5, 1) and names.any()
    with pytest.raises(ValueError, match="needs a model with codes"):
        run(build_clip(), tiny_processor, "concepts", scenes)
    with pytest.raises(ValueError, match="validation_split must be another split"):
        run(tiny_model, tiny_processor, "concepts", scenes, "--validation_split", "test")


def test_completeness_is_by_kind_without_flags(tiny_model, tiny_processor, images, tmp_path):
    rows = {"image": images, "caption": ["a cat"] * 3, "negative_caption": ["a dog"] * 3, "kind": [*"aab"]}
    split = Dataset.from_dict(rows)
    DatasetDict({"test": split, "c": split.map(lambda row: {"kind": "c"})}).save_to_disk(str(tmp_path))
    evaluation = run(tiny_model, tiny_processor, "completeness", str(tmp_path))
    assert list(evaluation.metrics) == ["accuracy", "accuracy_a", "accuracy_b"]
    evaluation = run(tiny_model, tiny_processor, "completeness", str(tmp_path), "--split", "test+c")
    assert list(evaluation.metrics) == ["accuracy", "accuracy_a", "accuracy_b", "accuracy_c"]
    assert evaluation.counts == {"images": 6, "swaps": 6}


@pytest.mark.parametrize(
    "column, cell, message",
    [
        ("concepts", ["fox", " "], "concepts of row 1 is .*not a list of names"),
        ("concepts", None, "concepts of row 1 is None"),
        ("objects", None, "objects of row 1 is None, not a list of things"),
        ("objects", [{"concept": None, "box": [0, 0, 1, 1]}], "whose concept is no name"),
        ("objects", [{"concept": "fox", "box": [0, 0, 1]}], "whose box is not left, top, right, bottom"),
        ("objects", [{"concept": "fox", "box": [2, 0, 1, 1]}], "whose box is not left, top, right, bottom"),
    ],
)
def test_truth_that_is_none_is_named(column, cell, message):
    good = {"concepts": ["fox"], "objects": [{"concept": "fox", "box": [0, 0, 1, 1]}]}[column]
    read = {"concepts": read_concepts, "objects": read_objects}[column]
    with pytest.raises(ValueError, match=message):
        read(Dataset.from_dict({column: [good, cell]}))
    read(Dataset.from_dict({column: [good, []]}))


def test_masks_are_one_for_each_object():
    clear = Image.fromarray(np.array([[[9, 9, 9, 0], [0, 0, 0, 9]]], dtype=np.uint8))
    rows = Dataset.from_dict(
        {"masks": [[clear]]}, features=datasets.Features({"masks": datasets.List(datasets.Image())})
    )
    ((mask,),) = read_masks(rows, [[{}]])
    assert mask.tolist() == [[False, True]]
    with pytest.raises(ValueError, match="masks of row 0 must be one for each of 2 objects"):
        next(read_masks(rows, [[{}, {}]]))
