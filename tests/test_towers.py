"""Towers of transformers: which FDT takes and refuses, what of them is trained, how they are loaded."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PvtConfig,
    Sam2HieraDetConfig,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from modeling_fdt import FDTConfig, FDTModel
from modeling_fdt.explanation_fdt import get_patch_grid
from modeling_fdt.towers_fdt import build_tower, get_context_length, get_tower_class
from tests.conftest import build_tiny_config


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SMALL_IMAGE = {**SMALL, "image_size": 32, "patch_size": 8}
SWIN = {
    **{"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]},
    "window_size": 4,
}
CONVNEXT = {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}

# Fields that make a tower small, the number of tokens before its patches, and of its patches in an image of 32 x 32.
VISION_TOWERS: dict[str, tuple[dict[str, Any], int, int]] = {
    "aimv2_vision_model": (SMALL_IMAGE, 0, 16),
    "altclip_vision_model": (SMALL_IMAGE, 1, 16),
    "beit": (SMALL_IMAGE, 1, 16),
    "blip_vision_model": (SMALL_IMAGE, 1, 16),
    "chinese_clip_vision_model": (SMALL_IMAGE, 1, 16),
    "clip_vision_model": (SMALL_IMAGE, 1, 16),
    "convnext": (CONVNEXT, 0, 16),
    "convnextv2": (CONVNEXT, 0, 16),
    "data2vec-vision": (SMALL_IMAGE, 1, 16),
    "deit": (SMALL_IMAGE, 2, 16),
    "dinov2": (SMALL_IMAGE, 1, 16),
    "dinov2_with_registers": ({**SMALL_IMAGE, "num_register_tokens": 3}, 4, 16),
    "dinov3_convnext": ({"hidden_sizes": [8, 16], "depths": [1, 1]}, 1, 16),
    "dinov3_vit": ({**SMALL_IMAGE, "num_register_tokens": 3}, 4, 16),
    "efficientnet": (
        {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128, "strides": [1, 2, 2, 1, 1, 1, 1]},
        0,
        16,
    ),
    "ijepa": (SMALL_IMAGE, 0, 16),
    "metaclip_2_vision_model": (SMALL_IMAGE, 1, 16),
    "mlcd_vision_model": (SMALL_IMAGE, 1, 16),
    "mobilenet_v1": ({"depth_multiplier": 0.1}, 0, 1),
    "mobilenet_v2": ({"depth_multiplier": 0.1, "finegrained_output": False, "output_stride": 8}, 0, 16),
    "mobilevit": (
        {
            **{"image_size": 32, "hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [8, 8, 12, 16, 20, 24, 48]},
            "num_attention_heads": 2,
        },
        0,
        1,
    ),
    "regnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8}, 0, 16),
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}, 0, 16),
    "sam_vision_model": ({**SMALL_IMAGE, "output_channels": 24, "window_size": 2, "global_attn_indexes": [1]}, 0, 16),
    "segformer": (
        {
            **{"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [16, 32], "num_attention_heads": [1, 2]},
            **{"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2]},
        },
        0,
        16,
    ),
    "siglip_vision_model": (SMALL_IMAGE, 0, 16),
    "swin": (SWIN, 0, 64),
    "swinv2": (SWIN, 0, 64),
    "vit": (SMALL_IMAGE, 1, 16),
    "vit_msn": (SMALL_IMAGE, 1, 16),
}

VOCABULARY = {"vocab_size": 99, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 18}
SMALL_TEXT = {**SMALL, **VOCABULARY}
DECODER = {**SMALL_TEXT, "num_key_value_heads": 2, "head_dim": 16}

# Fields that make a tower small, and how many of its 18 positions a caption can have.
TEXT_TOWERS: dict[str, tuple[dict[str, Any], int]] = {
    "albert": ({**SMALL_TEXT, "embedding_size": 16}, 18),
    "altclip_text_model": ({**SMALL_TEXT, "project_dim": 24}, 16),
    "bert": (SMALL_TEXT, 18),
    "blip_text_model": ({**SMALL_TEXT, "projection_dim": 32, "encoder_hidden_size": 32}, 18),
    "camembert": (SMALL_TEXT, 16),
    "chinese_clip_text_model": (SMALL_TEXT, 18),
    "clap_text_model": (SMALL_TEXT, 16),
    "clip_text_model": (SMALL_TEXT, 18),
    "data2vec-text": (SMALL_TEXT, 16),
    "deberta": ({**SMALL_TEXT, "relative_attention": True, "pos_att_type": "c2p|p2c"}, 18),
    "deberta-v2": ({**SMALL_TEXT, "relative_attention": True, "pos_att_type": "c2p|p2c"}, 18),
    "distilbert": ({"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, **VOCABULARY}, 18),
    "electra": ({**SMALL_TEXT, "embedding_size": 16}, 18),
    "ernie": (SMALL_TEXT, 18),
    "esm": (SMALL_TEXT, 16),
    "gemma": (DECODER, 18),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 18, "vocab_size": 99}, 18),
    "ibert": (SMALL_TEXT, 16),
    "llama": (DECODER, 18),
    "longformer": ({**SMALL_TEXT, "attention_window": [4, 4]}, 16),
    "luke": ({**SMALL_TEXT, "entity_vocab_size": 5, "entity_emb_size": 8}, 16),
    "markuplm": ({**SMALL_TEXT, "max_depth": 2, "xpath_unit_hidden_size": 8}, 16),
    "metaclip_2_text_model": (SMALL_TEXT, 18),
    "mistral": (DECODER, 18),
    "modernbert": ({**SMALL_TEXT, "local_attention": 4}, 18),
    "mpnet": (SMALL_TEXT, 16),
    "nomic_bert": (SMALL_TEXT, 18),
    "opt": ({**SMALL_TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32}, 18),
    "qwen2": (DECODER, 18),
    "qwen3": (DECODER, 18),
    "rembert": ({**SMALL_TEXT, "input_embedding_size": 16}, 18),
    "roberta": (SMALL_TEXT, 16),
    "roberta-prelayernorm": (SMALL_TEXT, 16),
    "roformer": (SMALL_TEXT, 18),
    "siglip2_text_model": (SMALL_TEXT, 18),
    "siglip_text_model": (SMALL_TEXT, 18),
    "xlm-roberta": (SMALL_TEXT, 16),
    "xlm-roberta-xl": (SMALL_TEXT, 16),
    "xmod": ({**SMALL_TEXT, "languages": ["en_XX"], "default_language": "en_XX"}, 16),
}


def build_tower_config(model_type: str) -> PreTrainedConfig:
    fields, *_ = (VISION_TOWERS | TEXT_TOWERS)[model_type]
    return CONFIG_MAPPING[model_type](**fields)


def build_model(model_type: str, **kwargs) -> FDTModel:
    """A small FDT model with a tower of that type."""
    half = "vision_config" if model_type in VISION_TOWERS else "text_config"
    if half == "vision_config":
        kwargs["text_config"] = SMALL_TEXT
    return FDTModel(build_tiny_config(**{half: build_tower_config(model_type)}, **kwargs))


def build_inputs(model: FDTModel) -> dict[str, torch.Tensor]:
    """Two images, and two captions of the whole context."""
    length = get_context_length(model.config.text_config)
    return {
        "pixel_values": torch.randn(2, 3, 32, 32),
        "input_ids": torch.randint(3, 99, (2, length)),
        "attention_mask": torch.ones(2, length, dtype=torch.long),
    }


def find_gradients(model: FDTModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(1)  # of dropout
    model(**inputs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


# What is trained


@pytest.mark.parametrize("model_type", [*VISION_TOWERS, *TEXT_TOWERS])
def test_every_trained_parameter_gets_a_gradient(model_type):
    """A trainable parameter without a gradient stops DistributedDataParallel, a frozen one with a gradient is lost."""
    model = build_model(model_type).train()
    inputs = build_inputs(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    gradients = find_gradients(model, inputs)

    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable()
    for name, gradient in find_gradients(checkpointed, inputs).items():
        torch.testing.assert_close(gradient, gradients.pop(name), msg=name)
    assert gradients == {}

    model.requires_grad_(True)
    unused = {name for name, _ in model.named_parameters()} - find_gradients(model, inputs).keys()
    # The norm that the original's Swin does not have.
    deliberately = (
        {f"vision_tower.layernorm.{name}" for name in ("weight", "bias")} if model_type == "swinv2" else set()
    )
    assert frozen == unused | deliberately


@pytest.mark.parametrize("model_type", ["swinv2", "resnet", "ibert"])  # a tuple, no embeddings, a tuple of text
def test_gradients_reach_frozen_embeddings(model_type):
    model = build_model(model_type).train()
    inputs = build_inputs(model)
    model.requires_grad_(False)
    half = "vision_tower" if model_type in VISION_TOWERS else "text_tower"
    adapter = {name for name, _ in model.named_parameters() if name.startswith(f"{half}.encoder.") and "bias" in name}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapter)
    # Without it, checkpointing of this kind gives a layer no gradient if none of its inputs needs one.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    gradients = find_gradients(model, inputs)
    model.disable_input_require_grads()
    assert gradients.keys() == adapter and adapter


# How they compute attention


@pytest.mark.parametrize("model_type", ["convnext", "swinv2", "deberta", "clip_text_model"])
def test_sdpa_where_a_tower_has_it(model_type, tmp_path):
    model = build_model(model_type)
    model.save_pretrained(tmp_path)
    half = "vision" if model_type in VISION_TOWERS else "text"
    other = {"vision": "text", "text": "vision"}[half]
    expected = "sdpa" if model_type == "clip_text_model" else "eager"
    model.set_attn_implementation("eager")
    model.set_attn_implementation("sdpa")
    loaded = FDTModel.from_pretrained(tmp_path, attn_implementation="sdpa")
    built = AutoModel.from_config(copy.deepcopy(model.config), attn_implementation="sdpa")
    for each in (model, loaded, built):
        implementations = {name: getattr(each, f"{name}_tower").config._attn_implementation for name in (half, other)}
        assert implementations == {half: expected, other: "sdpa"}
    if expected == "eager":  # what is asked of this tower alone is not another's choice
        asked = {f"{half}_config": "sdpa", f"{other}_config": "eager"}
        with pytest.raises(ValueError, match="does not support an attention implementation"):
            FDTModel.from_pretrained(tmp_path, attn_implementation=asked)
    asked = {f"{half}_config": "eager", f"{other}_config": "sdpa"}
    each = FDTModel.from_pretrained(tmp_path, attn_implementation=asked)
    assert [getattr(each, f"{name}_tower").config._attn_implementation for name in (half, other)] == ["eager", "sdpa"]


def test_towers_are_built_in_the_type_of_the_model():
    config = build_tower_config("siglip_vision_model")
    config.dtype = torch.float16
    model = FDTModel(build_tiny_config(vision_config=config, text_config=SMALL_TEXT))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.vision_tower.config.dtype == torch.float32


def test_towers_that_automodel_does_not_know():
    by_name = [t for t in [*VISION_TOWERS, *TEXT_TOWERS] if CONFIG_MAPPING[t] not in MODEL_MAPPING]
    assert "siglip_text_model" in by_name
    for model_type in by_name:
        assert get_tower_class(build_tower_config(model_type)).main_input_name in ("pixel_values", "input_ids")


# Which tokens are grounded


@pytest.mark.parametrize("model_type", VISION_TOWERS)
def test_only_patches_are_grounded(model_type):
    _, num_prefix_tokens, num_patches = VISION_TOWERS[model_type]
    model = build_model(model_type).eval()
    grounded = []
    model.vision_grounding.register_forward_pre_hook(lambda module, arguments: grounded.append(arguments[0]))
    pixel_values = torch.randn(2, 3, 32, 32)
    hidden_states = model.get_image_features(pixel_values).last_hidden_state
    rows, columns = get_patch_grid(model, hidden_states, pixel_values)
    assert rows == columns and rows * columns == num_patches
    # A feature map becomes a sequence row by row.
    tokens = hidden_states.flatten(2).transpose(1, 2) if hidden_states.ndim == 4 else hidden_states
    assert tokens.shape[1] == num_prefix_tokens + num_patches
    torch.testing.assert_close(grounded[0], tokens[:, num_prefix_tokens:], rtol=0, atol=0)


@pytest.mark.parametrize("model_type", [*TEXT_TOWERS, "lilt"])
def test_a_caption_can_have_the_whole_context_and_no_more(model_type):
    fields, context_length = TEXT_TOWERS.get(model_type, ({**SMALL_TEXT, "hidden_size": 48}, 16))
    model = FDTModel(build_tiny_config(text_config=CONFIG_MAPPING[model_type](**fields))).eval()
    model(input_ids=torch.full((1, context_length), 5))
    too_long = torch.full((1, context_length + 1), 5)
    with pytest.raises(ValueError, match=rf"at most {context_length} positions, got \(1, {context_length + 1}\)"):
        model(input_ids=too_long)
    if context_length < 18:  # the tower itself cannot take more
        with pytest.raises((IndexError, RuntimeError)):
            model.text_tower(input_ids=too_long)


@pytest.mark.parametrize("model_type", TEXT_TOWERS)
def test_a_caption_does_not_depend_on_its_padding(model_type):
    model = build_model(model_type).eval()
    caption = torch.arange(3, 8)[None]
    with torch.no_grad():
        alone = model.get_text_features(caption, torch.ones_like(caption)).text_embeds
        for sides in ((0, 7), (7, 0)):
            # Not `pad_token_id`: the mask alone tells what is padding.
            padded = torch.nn.functional.pad(caption, sides, value=50)
            mask = torch.nn.functional.pad(torch.ones_like(caption), sides)
            embeds = model.get_text_features(padded, mask).text_embeds
            torch.testing.assert_close(embeds, alone, rtol=0, atol=1e-5)  # sums of float32 in another order


def test_the_documentation_lists_the_towers_that_are_tested():
    page = (Path(__file__).parents[1] / "docs" / "towers.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w-]+)`", page, flags=re.MULTILINE) == [*VISION_TOWERS, *TEXT_TOWERS]


# Which towers are refused


@pytest.mark.parametrize(
    ("half", "model_type", "reason"),
    [
        ("vision_config", "bert", "BertModel does not take `pixel_values`"),
        ("vision_config", "clip", "give its `vision_config`"),
        ("vision_config", "detr", "its tokens stand for objects, not for patches"),
        ("vision_config", "cvt", "it has neither `hidden_size` nor `hidden_sizes`"),
        ("vision_config", "pixtral", "it joins the patches of all images into one sequence"),
        ("vision_config", "sam", "give its `vision_config`"),
        ("vision_config", "siglip2_vision_model", "takes pixel_attention_mask, spatial_shapes besides pixel_values"),
        ("vision_config", "timesformer", "it takes videos"),
        ("vision_config", "videomae", "it takes videos"),
        ("vision_config", "vit_mae", "it drops random patches, in evaluation too"),
        ("vision_config", "vivit", "it takes videos"),
        ("vision_config", "yolos", "it puts detection tokens behind the patches"),
        ("text_config", "aimv2_text_model", "depends on whether another of the batch is longer"),
        ("text_config", "bart", "BartModel takes decoder_input_ids besides input_ids"),
        ("text_config", "bloom", "its `max_position_embeddings` must be an integer above 0, got None"),
        ("text_config", "clip", "give its `text_config`"),
        ("text_config", "esm", "it needs a `pad_token_id`, from which it counts positions"),
        ("text_config", "vit", "ViTModel does not take `input_ids`"),
        ("text_config", "xlnet", "its `max_position_embeddings` must be an integer above 0, got -1"),
    ],
)
def test_what_is_no_tower_is_refused_with_a_reason(half, model_type, reason):
    kind = {"vision_config": "an image", "text_config": "a text"}[half]
    match = rf"`{half}` must be the configuration of {kind} tower, got .* \({model_type}\): .*{re.escape(reason)}"
    with pytest.raises(ValueError, match=match):
        FDTConfig(**{half: {"model_type": model_type}})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            PvtConfig(
                image_size=32,
                num_encoder_blocks=2,
                depths=[1, 1],
                hidden_sizes=[8, 16],
                num_attention_heads=[1, 1],
                patch_sizes=[4, 2],
                strides=[4, 2],
                sequence_reduction_ratios=[1, 1],
            ),
            "A pvt tower gives a sequence of tokens, but its configuration no `patch_size`",
        ),
        (
            Sam2HieraDetConfig(
                hidden_size=16, image_size=[32, 32], blocks_per_stage=[1, 1], embed_dim_per_stage=[16, 32]
            ),
            r"A sam2_hiera_det_model tower must give .* \(batch_size, num_tokens, 16\) .*, got \(1, 4, 4, 32\)",
        ),
    ],
    ids=["pvt", "sam2"],
)
def test_features_that_cannot_be_grounded_are_refused(config, message):
    model = FDTModel(build_tiny_config(vision_config=config)).eval()
    with pytest.raises(ValueError, match=message):
        model.get_image_features(torch.zeros(1, 3, 32, 32))


# Loading


@pytest.mark.parametrize(
    "model_type", ["mobilenet_v1", "resnet", "siglip_vision_model", "swinv2", "roberta", "siglip_text_model"]
)
def test_what_is_saved_is_loaded(model_type, tmp_path):
    model = build_model(model_type).eval()
    inputs = build_inputs(model)
    model.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(reloaded(**inputs).logits_per_image, model(**inputs).logits_per_image)


def test_a_configuration_that_tells_otherwise_than_the_tower_is_refused():
    config = build_tower_config("mobilenet_v1")
    build_tower(config)
    assert config.hidden_size == 102
    config.depth_multiplier = 0.2
    with pytest.raises(ValueError, match="of a mobilenet_v1 tower has hidden_size=102, but the tower 204"):
        build_tower(config)


def test_freezing_a_patch_embedding_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="a resnet tower has no patch embedding"):
        build_model("resnet", freeze_patch_embedding=True)


def build_pretrained(name: str, folder: str) -> tuple:
    text, image = {**SMALL, "vocab_size": 49409}, SMALL_IMAGE
    if name == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=image))
        model.save_pretrained(folder)
        return folder, folder, model.vision_model, model.text_model
    if name == "siglip":
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=image))
        model.save_pretrained(folder)
        return folder, folder, model.vision_model, model.text_model
    vision, language = ViTModel(ViTConfig(**image)), BertModel(BertConfig(**text))
    language.save_pretrained(f"{folder}/text")
    return vision, f"{folder}/text", vision, language


@pytest.mark.parametrize("name", ["clip", "siglip", "vit and bert"])
def test_from_vision_text_pretrained(name, tmp_path, inputs):
    vision, text, vision_tower, text_tower = build_pretrained(name, str(tmp_path))
    model = FDTModel.from_vision_text_pretrained(
        vision, text, codebook_size=16, codebook_dim=8, grounding_temperature=3.0
    )
    assert not model.training and model.codebook.shape == (16, 8) and model.config.grounding_temperature == 3.0
    for ours, theirs in ((model.vision_tower, vision_tower), (model.text_tower, text_tower)):
        state = theirs.state_dict()
        assert ours.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())
    model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], pixel_values=inputs["pixel_values"])


@pytest.fixture
def towers(tmp_path) -> dict[str, str]:
    """Folders of an image tower and, one level down, of a text tower, both saved in bfloat16."""
    ViTModel(ViTConfig(**SMALL_IMAGE)).to(torch.bfloat16).save_pretrained(tmp_path / "vision")
    BertModel(BertConfig(**SMALL, vocab_size=49409)).to(torch.bfloat16).save_pretrained(tmp_path / "text" / "inner")
    return {"vision": str(tmp_path / "vision"), "text": str(tmp_path / "text")}


@pytest.mark.parametrize(
    ("options", "types"),
    [
        ({}, (torch.float32, torch.float32, torch.float32)),
        ({"dtype": torch.bfloat16}, (torch.bfloat16, torch.bfloat16, torch.bfloat16)),
        ({"vision_dtype": torch.bfloat16}, (torch.bfloat16, torch.float32, torch.float32)),
        ({"text_dtype": "auto", "dtype": torch.float64}, (torch.float64, torch.bfloat16, torch.float64)),
    ],
)
def test_types_and_places_of_towers(options, types, towers, inputs):
    model = FDTModel.from_vision_text_pretrained(
        towers["vision"], towers["text"], text_subfolder="inner", codebook_size=16, **options
    )
    for part, dtype in zip((model.vision_tower, model.text_tower, model.vision_grounding), types, strict=True):
        assert {parameter.dtype for parameter in part.parameters()} == {dtype}
    assert model.codebook.dtype == options.get("dtype", torch.float32)
    assert model(**{**inputs, "pixel_values": inputs["pixel_values"].to(types[0])}).loss.isfinite()


def test_a_revision_is_that_of_configuration_and_weights(monkeypatch):
    asked = []

    def read_config(name: str, **options) -> ViTConfig:
        asked.append(options)
        return ViTConfig(**SMALL_IMAGE)

    def load(name: str, *, config: ViTConfig, output_loading_info: bool, **options) -> tuple:
        asked.append(options)
        return ViTModel(config), {"missing_keys": set()}

    monkeypatch.setattr(AutoConfig, "from_pretrained", read_config)
    monkeypatch.setattr(ViTModel, "from_pretrained", load)
    FDTModel.from_vision_text_pretrained(
        *("some/model", BertModel(BertConfig(**SMALL))),
        **{"vision_revision": "abc", "vision_attn_implementation": "eager"},
    )
    assert asked == [{"revision": "abc"}, {"revision": "abc", "attn_implementation": "eager"}]


@pytest.mark.parametrize("is_loaded", [True, False])
@pytest.mark.parametrize(
    ("vision_class", "text_class"),
    [
        (CLIPVisionModelWithProjection, CLIPTextModelWithProjection),
        (ViTForImageClassification, BertForMaskedLM),
        (SiglipForImageClassification, SiglipModel),
    ],
)
def test_the_base_model_is_taken_of_a_model_with_a_head(vision_class, text_class, is_loaded, tmp_path, inputs):
    text, image = {**SMALL, "vocab_size": 49409}, SMALL_IMAGE
    if vision_class is SiglipForImageClassification:
        text = image = {"vision_config": image, "text_config": text}
    vision, language = vision_class(vision_class.config_class(**image)), text_class(text_class.config_class(**text))
    given: list = [vision, language]
    if not is_loaded:
        given = [str(tmp_path / "vision"), str(tmp_path / "text")]
        for each, folder in zip((vision, language), given, strict=True):
            each.save_pretrained(folder)
    model = FDTModel.from_vision_text_pretrained(*given, codebook_size=16)
    for tower, source in ((model.vision_tower, vision), (model.text_tower, language)):
        base = next(module for module in source.modules() if type(module) is type(tower))
        state = base.state_dict()
        assert state.keys() <= tower.state_dict().keys()
        assert all(torch.equal(tower.state_dict()[name], tensor) for name, tensor in state.items())
    model(**inputs)


def test_a_loaded_model_that_holds_no_tower_is_refused():
    vision, text = ViTModel(ViTConfig(**SMALL_IMAGE)), BertModel(BertConfig(**SMALL))
    decoder = BartForCausalLM(BartConfig(d_model=32, decoder_layers=1, encoder_layers=1, vocab_size=99))
    with pytest.raises(ValueError, match="`text_model` must be or hold a BartModel, got a BartForCausalLM"):
        FDTModel.from_vision_text_pretrained(vision, decoder)
    with pytest.raises(ValueError, match="BertModel does not take `pixel_values`"):
        FDTModel.from_vision_text_pretrained(text, text)
    with pytest.raises(ValueError, match=r"\['vision_revision'\] say how .* `vision_model` is a loaded ViTModel"):
        FDTModel.from_vision_text_pretrained(vision, text, vision_revision="main")


def test_a_tower_checkpoint_without_its_weights_is_refused(tmp_path):
    vision, text = ViTConfig(**SMALL_IMAGE), BertConfig(**SMALL)
    both = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text)
    VisionTextDualEncoderModel(both).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks weights of its vision tower"):
        FDTModel.from_vision_text_pretrained(str(tmp_path), str(tmp_path))
