"""A saved model in transformers' pipelines, and its logits by every way of loading."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoProcessor, pipeline

from modeling_fdt import FDTModel, FDTProcessor


LABELS = ["a cat", "two dogs", "Hello!"]


@pytest.fixture
def folder(tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    return tmp_path


def test_zero_shot_image_classification(folder, images):
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    model, processor = FDTModel.from_pretrained(folder), FDTProcessor.from_pretrained(folder)
    for image in images:
        inputs = processor(
            images=image, text=[f"This is a photo of {label}." for label in LABELS], return_tensors="pt"
        )
        logits = model(**inputs).logits_per_image[0]
        assert torch.equal(AutoModel.from_pretrained(folder)(**inputs).logits_per_image[0], logits)
        probabilities = dict(zip(LABELS, logits.softmax(dim=-1).tolist(), strict=True))
        # The scores are probabilities of the same logits.
        assert {row["label"]: row["score"] for row in classify(image, candidate_labels=LABELS)} == probabilities


def test_pictures_by_path_and_in_batches(folder, images, tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    one_by_one = [classify(image, candidate_labels=LABELS) for image in images]
    assert [classify(path, candidate_labels=LABELS) for path in paths] == one_by_one
    batched = classify(paths, candidate_labels=LABELS, batch_size=3)
    for ours, theirs in zip(batched, one_by_one, strict=True):
        assert [row["label"] for row in ours] == [row["label"] for row in theirs]
        assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in theirs], abs=1e-6)


def test_an_over_long_label_is_an_error_not_a_guess(folder, images):
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    with pytest.raises(ValueError, match="at most 77 positions"):
        classify(images[0], candidate_labels=["cat " * 100])


def test_image_feature_extraction(folder, images):
    extract = pipeline("image-feature-extraction", model=str(folder), return_tensors=True)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    expected = model(**processor(images=images[0], return_tensors="pt")).image_embeds
    torch.testing.assert_close(extract(images[0]), expected)
    torch.testing.assert_close(extract(images[0], pool=True), expected)


def test_image_classification(folder, images):
    classify = pipeline("image-classification", model=str(folder))
    assert {row["label"] for row in classify(images[0])} == {"LABEL_0", "LABEL_1"}


def test_import_touches_no_device_network_or_search_path():
    code = (
        "import socket, sys\n"
        "def refuse(*arguments, **kwargs): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "path = list(sys.path)\n"
        "import torch\n"
        "import modeling_fdt\n"
        "assert sys.path == path\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_half_precision(folder, images):
    classify = pipeline("zero-shot-image-classification", model=str(folder), dtype=torch.bfloat16)
    assert classify.model.dtype == torch.bfloat16
    assert len(classify(images[0], candidate_labels=LABELS)) == 3
