"""The same numbers as the original implementation, forward and backward, for every recorded configuration."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from conversion.key_map import key_map, to_original
from conversion.original_checkpoint import read_original_checkpoint
from conversion.original_config import read_original_config
from conversion.original_forward import original_forward
from conversion.to_transformers import convert

from . import golden


# Float32 rounding of two orders of summation through four transformer blocks: 4e-6 was measured on features of
# magnitude 4; logits are cosines times 19.4, so their error is that much larger.
ATOL = {"logits_per_image": 1e-4, "logits_per_text": 1e-4}
DEFAULT_ATOL = 1e-5
# A gradient's distance from the recorded one, as a share of its norm. The floor is one float32 step of a logit of 16
# to 32 (1.9e-6): the gradient of the logit scale is a weighted sum of logits, which nearly cancel in one case.
GRADIENT_RTOL, GRADIENT_ATOL = 1e-4, 2e-6


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {
        name: read_original_checkpoint(golden.write_checkpoint(name, tmp_path_factory.mktemp(name)))
        for name in golden.CHECKPOINTS
    }


def assert_close(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    atol = ATOL.get(name, DEFAULT_ATOL)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, msg=lambda message: f"{name}: {message}")


def assert_gradients_close(gradients: dict[str, torch.Tensor], recorded: dict[str, golden.Gradient]) -> None:
    for name, expected in recorded.items():
        gradient = gradients[name].flatten().float()
        for distance, size in (
            ((gradient[:: expected.step] - expected.values).norm(), expected.values.norm()),
            ((gradient.norm() - expected.norm).abs(), expected.norm),
        ):
            assert distance <= GRADIENT_RTOL * size + GRADIENT_ATOL, f"{name}: {distance} away, norm {size}"


@pytest.mark.parametrize("case", golden.FDT_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_forward_computes_what_the_original_computed(case, dtype, checkpoints):
    checkpoint, recording = checkpoints["tiny_clip_fdt"], golden.read_recording("tiny_clip_fdt", case)
    config = read_original_config(golden.config_path("tiny_clip_fdt", case))
    tensors = {name: tensor.to(dtype, copy=True).requires_grad_() for name, tensor in checkpoint.tensors.items()}
    recorded = recording.tensors
    outputs = original_forward(
        tensors,
        config,
        checkpoint.last_iter,
        recorded["pixel_values"].to(dtype),
        recorded["input_ids"],
        recorded["attention_mask"],
    )
    for name, value in outputs.items():
        expected = recorded[name]
        if name.endswith("_fdt_features"):
            value, expected = normalize(value), normalize(expected)
        assert_close(value.float(), expected, name)
    outputs["loss"].backward()
    assert_gradients_close({name: tensors[name].grad for name in recording.gradients}, recording.gradients)


@pytest.mark.parametrize("case", golden.FDT_CASES)
def test_converted_model_computes_what_the_original_computed(case, checkpoints):
    checkpoint, recording = checkpoints["tiny_clip_fdt"], golden.read_recording("tiny_clip_fdt", case)
    config = read_original_config(golden.config_path("tiny_clip_fdt", case))
    model = convert(checkpoint, config)
    recorded = recording.tensors
    inputs = {name: recorded[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    outputs = model(**inputs)

    assert_close(outputs.vision_model_output.last_hidden_state[:, 1:], recorded["patch_features"], "patch_features")
    is_token = inputs["attention_mask"].bool()  # Padding sees other padding there and does not here; neither counts.
    assert_close(
        outputs.text_model_output.last_hidden_state[is_token], recorded["token_features"][is_token], "token_features"
    )
    for modality in ("image", "text"):
        weights, embeds = outputs[f"{modality}_code_weights"], outputs[f"{modality}_embeds"]
        assert_close(weights, recorded[f"{modality}_fdt_weights"], f"{modality}_fdt_weights")
        assert_close(embeds, normalize(recorded[f"{modality}_fdt_features"]), f"{modality}_fdt_features")
    for name in ("logits_per_image", "logits_per_text", "loss"):
        assert_close(outputs[name], recorded[name], name)

    outputs.loss.backward()
    gradients = {
        name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in model.named_parameters()
    }
    assert_gradients_close(to_original(gradients, key_map(config)), recording.gradients)


@pytest.mark.parametrize("case", golden.FDT_CASES)
def test_short_captions_need_no_padding_to_the_context(case, checkpoints):
    recorded = golden.read_recording("tiny_clip_fdt", case).tensors
    model = convert(checkpoints["tiny_clip_fdt"], read_original_config(golden.config_path("tiny_clip_fdt", case)))
    is_short = recorded["attention_mask"].sum(1) < 25
    input_ids, attention_mask = recorded["input_ids"][is_short, :25], recorded["attention_mask"][is_short, :25]
    with torch.no_grad():
        outputs = model.get_text_features(input_ids, attention_mask)
    assert is_short.sum() >= 3
    assert_close(outputs.text_code_weights, recorded["text_fdt_weights"][is_short], "text_fdt_weights")


@pytest.mark.parametrize("case", golden.FDT_CASES)
def test_effective_temperature_is_the_recorded_one(case, checkpoints):
    config = read_original_config(golden.config_path("tiny_clip_fdt", case))
    recorded = golden.read_recording("tiny_clip_fdt", case).temperature
    # The decayed temperature is a power with a real exponent, which libraries round differently in the last digit.
    assert math.isclose(config.temperature.at(checkpoints["tiny_clip_fdt"].last_iter), recorded, rel_tol=1e-14)


def test_clip_baseline_computes_what_the_original_computed(checkpoints):
    checkpoint, recorded = checkpoints["tiny_clip"], golden.read_recording("tiny_clip").tensors
    config = read_original_config(golden.config_path("tiny_clip"))
    inputs = {name: recorded[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    plain = original_forward(checkpoint.tensors, config, checkpoint.last_iter, **inputs)
    with torch.no_grad():
        converted = convert(checkpoint, config)(**inputs)
    for name in ("image_features", "text_features", "logits_per_image"):
        assert_close(plain[name], recorded[name], name)
    assert_close(converted.logits_per_image, recorded["logits_per_image"], "logits_per_image")
    for modality in ("image", "text"):
        assert_close(converted[f"{modality}_embeds"], normalize(recorded[f"{modality}_features"]), modality)
