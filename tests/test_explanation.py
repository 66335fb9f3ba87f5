"""Explanations: scores are slices of all scores, contributions sum to logits, maps lie where patches are."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, Dinov2WithRegistersConfig, ResNetConfig, Swinv2Config
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.levit.image_processing_pil_levit import LevitImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from modeling_fdt import FDTImageProcessor, FDTModel, FDTProcessor
from modeling_fdt.explanation_fdt import find_patch_grid, score_codes
from tests.conftest import build_tiny_config


SMALL_IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SMALL_IMAGE.update(image_size=32, patch_size=8)
TOWERS = {
    "clip": SMALL_IMAGE,
    "registers": Dinov2WithRegistersConfig(**SMALL_IMAGE, num_register_tokens=3),
    "swin": Swinv2Config(image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
}


def naive_scores(grounding: torch.nn.Module, features: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The whole tensor of scores, (batch_size, num_tokens, codebook_size)."""
    return grounding.query_projection(features) @ codebook.T / codebook.shape[-1] ** 0.5


@pytest.mark.parametrize("tower", TOWERS)
def test_token_queries_are_what_grounding_compares_codes_with(tower, inputs):
    model = FDTModel(build_tiny_config(vision_config=TOWERS[tower])).eval()
    compared = []
    for grounding in (model.vision_grounding, model.text_grounding):
        grounding.query_projection.register_forward_hook(lambda module, args, output: compared.append(output))
    outputs = model(**inputs)
    queries = model.get_token_queries(outputs, inputs["pixel_values"])
    for number in (0, 1):
        torch.testing.assert_close(queries[number], compared[number], rtol=0, atol=0)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert [one is None for one in model.get_token_queries(model(**text))] == [True, False]


@pytest.mark.parametrize("tower", TOWERS)
def test_patch_scores_are_a_slice_of_all_scores(tower, inputs):
    model = FDTModel(build_tiny_config(vision_config=TOWERS[tower])).eval()
    pixels = inputs["pixel_values"]
    explanation = model.explain(pixel_values=pixels, top_k=5)
    outputs = model(pixel_values=pixels)
    features = model._select_patches(outputs.vision_model_output.last_hidden_state, pixels)
    scores = naive_scores(model.vision_grounding, features, model.codebook)
    _, _, height, width = explanation.patch_scores.shape
    assert height == width and height * width == features.shape[1]
    for row in range(3):
        expected = scores[row, :, explanation.image_codes[row]].T.reshape(5, height, width)
        # Both are sums of 32 products in another order.
        torch.testing.assert_close(explanation.patch_scores[row], expected, rtol=0, atol=1e-5)
    weights = outputs.image_code_weights.sort(dim=-1, descending=True).values[:, :5]
    torch.testing.assert_close(explanation.image_weights, weights)


@pytest.mark.parametrize("tower", ["clip", "resnet"])
def test_patches_of_a_picture_that_is_not_square_keep_their_places(tower):
    model = FDTModel(build_tiny_config(vision_config=TOWERS[tower])).eval()
    pixels = torch.randn(1, 3, 32, 64)
    kwargs = {"interpolate_pos_encoding": True} if tower == "clip" else {}
    explanation = model.explain(pixel_values=pixels, codes=[3], **kwargs)
    hidden = model.get_image_features(pixels, **kwargs).last_hidden_state
    grid = (4, 8) if tower == "clip" else tuple(hidden.shape[2:])
    assert explanation.patch_scores.shape == (1, 1, *grid)
    # One patch by hand, the second in the last row: its features are at a known place of the tower's output.
    feature = hidden[0, 1 + 3 * 8 + 1] if tower == "clip" else hidden[0, :, -1, 1]
    expected = naive_scores(model.vision_grounding, feature[None, None], model.codebook)[0, 0, 3]
    torch.testing.assert_close(explanation.patch_scores[0, 0, -1, 1], expected, rtol=0, atol=1e-5)


def test_grids_of_hierarchical_towers():
    assert find_patch_grid(49, (224, 224), (32, 32)) == (7, 7)
    assert find_patch_grid(49, (224, 224), (4, 4)) == (7, 7)  # Swin: 56, 28, 14, 7
    assert find_patch_grid(4 * 7, (112, 224), (4, 4)) == (4, 7)  # 28 x 56, 14 x 28, 7 x 14, 4 x 7: halves round up
    with pytest.raises(ValueError, match="48 patches are no grid"):
        find_patch_grid(48, (224, 224), (32, 32))


def test_token_scores_are_a_slice_of_all_scores_and_ignore_padding(tiny_model, inputs):
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    explanation = tiny_model.explain(**text, codes=[7, 0])
    hidden = tiny_model(**text).text_model_output.last_hidden_state
    scores = naive_scores(tiny_model.text_grounding, hidden, tiny_model.codebook)[..., [7, 0]].transpose(1, 2)
    is_valid = text["attention_mask"][:, None].bool().expand_as(scores)
    assert not is_valid.all()
    torch.testing.assert_close(explanation.token_scores[is_valid], scores[is_valid], rtol=0, atol=1e-5)
    assert (explanation.token_scores[~is_valid] == -torch.inf).all()


@pytest.mark.parametrize("padding_score", ["zero", "ignore"])
def test_no_token_wins_where_padding_does(padding_score, inputs):
    model = FDTModel(build_tiny_config(padding_score=padding_score)).eval()
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    winners = model.explain(**text, codes=range(64)).winning_tokens
    hidden = model(**text).text_model_output.last_hidden_state
    scores = naive_scores(model.text_grounding, hidden, model.codebook)
    best, expected = scores.masked_fill(text["attention_mask"][..., None] == 0, -torch.inf).max(dim=1)
    if padding_score == "zero":
        assert (best < 0).any()
        expected = expected.masked_fill(best < 0, -1)
    assert torch.equal(winners, expected)


def test_padding_wins_nothing_from_a_caption_of_full_length_or_without_max_pooling(inputs):
    full = torch.randint(1, 100, (2, 77))
    winners = FDTModel(build_tiny_config()).eval().explain(input_ids=full, codes=range(64)).winning_tokens
    assert (winners >= 0).all()
    model = FDTModel(build_tiny_config(token_pooling="mean")).eval()
    assert (model.explain(inputs["input_ids"], codes=range(64)).winning_tokens >= 0).all()


@pytest.mark.parametrize("activation", ["sparsemax", "softmax", "sigmoid"])
def test_contributions_sum_to_the_logits(activation, inputs):
    model = FDTModel(build_tiny_config(grounding_activation=activation)).eval()
    inputs = {**inputs, "input_ids": inputs["input_ids"][:2], "attention_mask": inputs["attention_mask"][:2]}
    explanation, logits = model.explain(**inputs, top_k=None), model(**inputs).logits_per_image
    assert logits.shape == (3, 2)
    # The bar is 1e-5; the logits themselves, up to 14 in float32, carry an error of about 2e-6.
    torch.testing.assert_close(explanation.image_contributions.sum(dim=-1), logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(explanation.text_contributions.sum(dim=-1), logits, rtol=0, atol=1e-5)


def test_contributions_sum_to_large_logits_in_double_precision(inputs):
    model = FDTModel(build_tiny_config(logit_scale_init_value=4.6)).eval().double()
    inputs["pixel_values"] = inputs["pixel_values"].double()
    explanation, logits = model.explain(**inputs, top_k=None), model(**inputs).logits_per_image
    assert logits.abs().max() > 10
    torch.testing.assert_close(explanation.image_contributions.sum(dim=-1), logits, rtol=0, atol=1e-9)


def test_the_logit_scale_is_capped_as_in_the_model(inputs):
    model = FDTModel(build_tiny_config(logit_scale_init_value=6.0)).eval()
    explanation = model.explain(**inputs, top_k=None)
    # Relative to logits of up to 100 in float32.
    torch.testing.assert_close(
        explanation.image_contributions.sum(dim=-1), explanation.logits_per_image, rtol=1e-5, atol=1e-4
    )


def test_shared_codes_by_their_definition(tiny_model, inputs):
    explanation, outputs = tiny_model.explain(**inputs, top_k=None), tiny_model(**inputs)
    scale = tiny_model.logit_scale.exp()
    for image in range(3):
        for text in range(3):
            w, v = outputs.image_code_weights[image], outputs.text_code_weights[text]
            pairs = torch.outer(w, v) * (tiny_model.codebook @ tiny_model.codebook.T)
            pairs = pairs * scale / (w @ tiny_model.codebook).norm() / (v @ tiny_model.codebook).norm()
            torch.testing.assert_close(pairs.sum(), outputs.logits_per_image[image, text], rtol=0, atol=1e-5)
            same = explanation.same_code_logits[image, text]
            torch.testing.assert_close(pairs.diagonal().sum(), same, rtol=0, atol=1e-5)
            codes, shares = explanation.shared_codes[image, text], explanation.shared_contributions[image, text]
            torch.testing.assert_close(shares, pairs.diagonal()[codes], rtol=0, atol=1e-5)
            assert set(codes[shares > 0].tolist()) == set(((w > 0) & (v > 0)).nonzero().flatten().tolist())
            assert (shares.diff() <= 0).all()


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_only_asked_for_scores_are_computed():
    queries, codebook = torch.randn(2, 50, 8), torch.randn(4096, 8)
    with LargestTensor() as largest:
        score_codes(queries, codebook, torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert largest.numel == queries.numel()


def test_wrong_arguments_are_refused(tiny_model, inputs):
    for wrong, message in (
        ({"top_k": 0}, "`top_k` must be from 1 to 64 or None, got 0"),
        ({"top_k": 65}, "`top_k` must be from 1 to 64 or None, got 65"),
        ({"codes": [64]}, "`codes` must be a list of indices from 0 to 63"),
        ({"codes": [-1]}, "`codes` must be a list of indices from 0 to 63"),
        ({"codes": []}, "`codes` must be a list of indices from 0 to 63"),
        ({"codes": [0.5]}, "`codes` must be a list of indices from 0 to 63"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_model.explain(**inputs, **wrong)
    with pytest.raises(ValueError, match="`explain` takes `pixel_values`, .* got `patch_features`"):
        tiny_model.explain(patch_features=tiny_model.get_patch_features(inputs["pixel_values"]))
    with pytest.raises(ValueError, match="`explain` needs the model in evaluation mode"):
        tiny_model.train().explain(**inputs)


def test_half_precision(inputs):
    model = FDTModel(build_tiny_config()).eval().bfloat16()
    explanation = model.explain(**{**inputs, "pixel_values": inputs["pixel_values"].bfloat16()})
    assert explanation.patch_scores.dtype == torch.float32 and explanation.patch_scores.isfinite().all()


def test_words_of_a_caption(tiny_model, tiny_processor):
    captions = ["It's a photograph", "two 👩‍🚀 مرحبا <b>"]
    inputs = tiny_processor(text=captions, return_tensors="pt")
    explanation = tiny_model.explain(**inputs, codes=range(64))
    first, second = tiny_processor.post_process_text_explanation(explanation, captions)
    assert first["words"] == ["<|startoftext|>", "it", "'s", "a", "photograph", "<|endoftext|>"]
    assert first["spans"] == [None, (0, 2), (2, 4), (5, 6), (7, 17), None]
    assert second["words"][1] == "two" and second["words"][-3:-1] == ["b", ">"] and "مرحبا" in second["words"]
    tokens = tiny_processor.tokenizer(captions[1])
    assert len(second["words"]) < len(tokens["input_ids"])
    word = second["words"].index("مرحبا")
    mine = [i for i, w in enumerate(tokens.word_ids()) if w == tokens.word_ids()[-2] - 3]
    active = explanation.text_weights[1] > 0
    assert (explanation.token_scores[1][active][:, mine].amax(dim=1) == second["scores"][:, word]).all()
    assert first["codes"].tolist() == explanation.text_codes[0, explanation.text_weights[0] > 0].tolist()
    for result in (first, second):
        assert (result["weights"] > 0).all()
        for scores, winner in zip(result["scores"], result["winners"], strict=True):
            assert winner == (scores.argmax().item() if scores.max() >= 0 else None)
    with pytest.raises(ValueError, match="one caption for each of 2 captions, got 1"):
        tiny_processor.post_process_text_explanation(explanation, captions[:1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_words_of_padded_captions(side, tiny_model, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = side
    processor = FDTProcessor(FDTImageProcessor(), tokenizer)
    captions = ["a photograph", "two dogs on the grass, one of them brown"]
    alone, together = (
        tiny_model.explain(**processor(text=text, return_tensors="pt"), codes=range(64))
        for text in (captions[:1], captions)
    )
    (expected,) = processor.post_process_text_explanation(alone, captions[:1])
    result, _ = processor.post_process_text_explanation(together, captions)
    assert result["words"] == expected["words"] and result["winners"] == expected["winners"]
    torch.testing.assert_close(result["scores"], expected["scores"], atol=1e-5, rtol=0)


def test_captions_that_are_not_those_of_the_explanation_are_refused(tiny_model, tiny_processor):
    explanation = tiny_model.explain(**tiny_processor(text=["a cat", "a dog"], return_tensors="pt"))
    with pytest.raises(ValueError, match="caption 1 has 5 tokens, .* has 4"):
        tiny_processor.post_process_text_explanation(explanation, ["a cat", "a brown dog"])


def test_a_long_caption_has_the_words_that_the_model_read(tiny_model, tiny_processor):
    caption = "word " * 200
    explanation = tiny_model.explain(**tiny_processor(text=caption, return_tensors="pt"))
    (result,) = tiny_processor.post_process_text_explanation(explanation, caption)
    assert len(result["words"]) == 77 and result["scores"].shape[1] == 77


def test_crop_box(tokenizer):
    def box(height: int, width: int, **options) -> list[float]:
        processor = FDTProcessor(FDTImageProcessor(**options), tokenizer)
        return [round(side, 3) for side in processor.get_crop_box((height, width))]

    assert box(256, 256) == [16, 16, 240, 240]
    assert box(512, 1024) == [288, 32, 736, 480]  # resized to 256 x 512: columns 144 to 368
    assert box(100, 50, do_resize=False, crop_size={"height": 60, "width": 60}) == [-5, 20, 55, 80]
    assert box(100, 50, do_center_crop=False) == [0, 0, 50, 100]
    assert box(100, 50, size={"height": 32, "width": 32}, do_center_crop=False) == [0, 0, 50, 100]


@pytest.mark.parametrize(
    ("image_processor", "size", "expected"),
    [
        (ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.5), (600, 900), (300, 150, 600, 450)),
        (ConvNextImageProcessorPil(size={"shortest_edge": 384}), (300, 700), (0, 0, 700, 300)),
        (LevitImageProcessorPil(), (512, 256), (16, 144, 240, 368)),
        (ViTImageProcessorPil(), (200, 1000), (0, 0, 1000, 200)),
        (CLIPImageProcessorPil(), (448, 900), (226, 0, 674, 448)),
        (CLIPImageProcessorPil(do_resize=False), (200, 400), (88, -12, 312, 212)),
        (CLIPImageProcessorPil(), (12, 10), (0, 1, 10, 11)),
        (CLIPImageProcessorPil(do_rescale=False, do_normalize=False), (300, 300), (0, 0, 300, 300)),
        (FDTImageProcessor(size={"max_height": 256, "max_width": 256}), (200, 400), (25, -75, 375, 275)),
    ],
)
def test_crop_box_of_other_image_processors(image_processor, size, expected, tokenizer):
    box = FDTProcessor(image_processor, tokenizer).get_crop_box(size)
    np.testing.assert_allclose(box, expected, atol=max(size) / 500)  # 8 bits tell no more than 255 places


def test_an_image_processor_that_does_more_than_resize_and_crop_is_refused(tokenizer):
    class Mirror(ViTImageProcessorPil):
        def resize(self, image, size, resample=None, **kwargs):
            return super().resize(abs(image.astype(int) - 128).astype("uint8"), size, resample, **kwargs)

    with pytest.raises(ValueError, match="Mirror does more than resize and crop"):
        FDTProcessor(Mirror(), tokenizer).get_crop_box((100, 100))


def test_heat_map_lies_on_the_original_picture(tiny_processor):
    """A picture with one bright corner of the crop, and a model that scores brightness."""
    model = FDTModel(build_tiny_config()).eval()
    # 60 x 120 pixels, resized to 32 x 64 and cropped to the central 32 x 32: columns 30 to 90 of the original.
    inputs = tiny_processor(images=Image.new("RGB", (120, 60)), return_tensors="pt")
    explanation = model.explain(**inputs, top_k=2)
    scores = torch.zeros(1, 2, 4, 4)
    scores[0, 0, 3, 0] = 1
    explanation["patch_scores"] = scores
    (result,) = tiny_processor.post_process_image_explanation(explanation, [(60, 120)])
    heat_map = result["heat_maps"][0]
    assert heat_map.shape == (60, 120)
    assert heat_map[:, :30].isnan().all() and heat_map[:, 90:].isnan().all()
    assert heat_map[:, 30:90].isfinite().all()
    assert heat_map[53, 36] == heat_map[:, 30:90].max() and heat_map[0, 89] == 0
    assert result["boxes"][0].tolist() == [30, 45, 45, 60]
    with pytest.raises(ValueError, match="`target_sizes` must be one for each of 1 images"):
        tiny_processor.post_process_image_explanation(explanation, [])


def test_inactive_codes_are_left_out(tiny_model, tiny_processor, inputs, images):
    explanation = tiny_model.explain(pixel_values=inputs["pixel_values"], codes=range(64))
    results = tiny_processor.post_process_image_explanation(explanation, [image.size[::-1] for image in images])
    for result, weights, image in zip(results, explanation.image_weights, images, strict=True):
        assert result["codes"].tolist() == weights.nonzero().flatten().tolist()
        assert result["heat_maps"].shape == (len(result["codes"]), image.height, image.width)


def test_explain_works_on_a_model_loaded_by_auto_model(tiny_model, inputs, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    explanation = AutoModel.from_pretrained(tmp_path).explain(**inputs)
    torch.testing.assert_close(explanation.patch_scores, tiny_model.explain(**inputs).patch_scores)
