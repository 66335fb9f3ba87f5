# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Images that show one named concept each, by hand, and what pixels alone reach."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from run_scripts.evaluation.naming import evaluate_naming, naming_metrics, pixel_controls
from run_scripts.evaluation.pixel_baseline import nearest_rows, shrink_images


def test_naming_by_hand():
    """Three drawings of the concepts 0, 1 and 1 among four names; the last drawing is taken for concept 3."""
    names, drawings = torch.eye(4), torch.eye(4)[[0, 1, 3]]
    categories, targets = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1])
    metrics = naming_metrics(drawings, names, targets, categories, seed=0)
    expected = {
        "top_1": 2 / 3,
        "category": 1.0,  # concept 3 is of the same category as concept 1
        # Among the names of concepts 0 and 1 the last drawing is equally far from both: ties count against it.
        "image_to_text_R@1": 2 / 3,
        "image_to_text_R@5": 1.0,
        "text_to_image_R@1": 1.0,
    }
    assert {name: metrics[name].value for name in expected} == pytest.approx(expected)
    assert "top_1_of_10" not in metrics  # of four names
    assert metrics["category"].chance == pytest.approx(2 / 3)


def test_codes_are_measured_where_there_are_any(tiny_model, tiny_processor, images):
    concepts = {"C": ("a cat", 0), "D": ("a dog", 1)}
    arguments = (tiny_processor, images, ["D", "C", "D"], concepts)
    metrics, predictions = evaluate_naming(tiny_model, *arguments, seed=0)
    right = sum(name == true for name, true in zip(predictions, ["a dog", "a cat", "a dog"], strict=True))
    assert metrics["top_1"].value == pytest.approx(right / 3)
    with torch.no_grad():
        weights = tiny_model(**tiny_processor(images=images, text=["x"], return_tensors="pt")).image_code_weights
    assert metrics["active_per_image"].value == pytest.approx((weights > 0).sum(dim=1).double().mean().item())


def test_pixels_find_what_looks_alike(tiny_processor):
    def splits(colors: list[str], seed: int) -> Dataset:
        random = np.random.default_rng(seed)
        squares = [np.asarray(Image.new("RGB", (30, 40), color)) for color in colors]
        pictures = [
            Image.fromarray(square ^ random.integers(0, 32, square.shape, dtype=np.uint8)) for square in squares
        ]
        rows = {"image": pictures, "concept": colors, "category": [int(color == "red") for color in colors]}
        return Dataset.from_dict(rows)

    train, test = splits(["red", "blue", "green"], 0), splits(["blue", "red", "orange"], 1)
    assert pixel_controls(tiny_processor, train, test) == pytest.approx({"top_1": 2 / 3, "category": 2 / 3})


def test_transparency_is_decoded_as_for_the_model(tiny_processor):
    clear = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    assert shrink_images(tiny_processor.image_processor, [clear]) == pytest.approx(np.ones((1, 24 * 24 * 3)))
    with pytest.raises(ValueError, match="no image"):
        shrink_images(tiny_processor.image_processor, [])


def test_nearest_rows_are_in_order():
    reference = np.array([[0.0], [10.0], [4.0]])
    assert nearest_rows(reference, np.array([[3.0], [9.0]]), 2).tolist() == [[2, 0], [1, 2]]
