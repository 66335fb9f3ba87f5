"""Embedding of pictures and captions batch by batch."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from run_scripts.evaluation.embedding import embed_captions, embed_images, load_model
from run_scripts.evaluation.prompts import embed_classes


@pytest.fixture
def folder(tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    return str(tmp_path)


def test_embeddings_do_not_depend_on_the_batch_size(folder, inputs, images, captions):
    model, processor = load_model(folder)
    expected = model(**inputs)
    for batch_size in (1, 2, 3):
        by_image = embed_images(model, processor, iter(images), batch_size)
        by_caption = embed_captions(model, processor, iter(captions), batch_size)
        # Matrix products of another size may round the last bits of float32 in another way.
        torch.testing.assert_close(by_image.embeds, expected.image_embeds, rtol=0, atol=1e-5)
        torch.testing.assert_close(by_image.code_weights, expected.image_code_weights, rtol=0, atol=1e-5)
        torch.testing.assert_close(by_caption.embeds, expected.text_embeds, rtol=0, atol=1e-5)
        torch.testing.assert_close(by_caption.code_weights, expected.text_code_weights, rtol=0, atol=1e-5)


def test_a_long_caption_is_truncated(folder):
    model, processor = load_model(folder)
    assert embed_captions(model, processor, ["word " * 200]).embeds.shape == (1, 32)


def test_equal_captions_are_embedded_once(tiny_model, tiny_processor):
    # In batches of other sizes and paddings the same caption would differ in its last bits.
    captions = ["a cat", "two dogs on the grass, one of them brown", "a dog", "a bird", "a cat"]
    features = embed_captions(tiny_model, tiny_processor, captions, batch_size=2)
    assert torch.equal(features.embeds[0], features.embeds[4])
    assert torch.equal(features.code_weights[0], features.code_weights[4])
    classes = embed_classes(tiny_model, tiny_processor, captions, ["{}", "a photo of {}"], batch_size=4)
    assert torch.equal(classes.embeds[0], classes.embeds[4])
    assert torch.equal(classes.code_weights[0], classes.code_weights[4])


def test_nothing_to_embed_is_refused(folder):
    with pytest.raises(ValueError, match="nothing to embed"):
        embed_captions(*load_model(folder), [])


def test_one_tower_alone_is_refused(tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    CLIPVisionModel(CLIPVisionConfig(**small, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="CLIPVisionModel, which does not embed images and captions"):
        load_model(str(tmp_path))


def test_a_checkpoint_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="model='.*missing' cannot be loaded: "):
        load_model(str(tmp_path / "missing"))


@pytest.mark.parametrize("device", ["banana", "cuda:999"])  # no word of torch's, and none that it finds
def test_a_device_that_is_not_there_is_refused(device, folder):
    with pytest.raises(ValueError, match=f"device must be one that torch finds here, .* got '{device}'"):
        load_model(folder, device)
