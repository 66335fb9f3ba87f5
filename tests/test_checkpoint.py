"""The weights that come with the repository: small, whole, and right about a scene that training never showed."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import pipeline

from modeling_fdt import FDTModel, FDTProcessor


FOLDER = Path(__file__).parents[1] / "checkpoints" / "fdt-scenes"
SHOWN = ("a burger", "a tiger")
NOT_SHOWN = ("a bee", "a cow", "a guitar", "a castle", "a tree")


@pytest.fixture(scope="module")
def model() -> FDTModel:
    return FDTModel.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def processor() -> FDTProcessor:
    return FDTProcessor.from_pretrained(FOLDER)


def test_it_is_small_and_says_what_it_was_made_of(model):
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10_000_000
    assert model.dtype == torch.float32 and model.config.codebook_size >= 1024
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "scenes_checkpoint.json" in card and "license: apache-2.0" in card
    attribution = (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "CC-BY-4.0" in attribution and "-SA-" not in attribution


def test_pipeline_names_what_a_scene_shows():
    classify = pipeline("zero-shot-image-classification", model=str(FOLDER))
    answers = classify(str(FOLDER / "scene.png"), candidate_labels=[*SHOWN, *NOT_SHOWN], hypothesis_template="{}")
    assert {answer["label"] for answer in answers[: len(SHOWN)]} == set(SHOWN)


def test_few_codes_make_an_image_and_its_caption_alike(model, processor):
    image = Image.open(FOLDER / "scene.png")
    inputs = processor(images=image, text=[" and ".join(SHOWN), " and ".join(NOT_SHOWN)], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    assert (outputs.image_code_weights > 0).sum() <= 32
    assert outputs.logits_per_image[0, 0] > outputs.logits_per_image[0, 1]
    shared = (outputs.image_code_weights * outputs.text_code_weights > 0).sum(dim=1)
    assert shared[0] > shared[1]
