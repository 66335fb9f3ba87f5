"""FDTConfig: defaults, presets, round trips, and the refusal of what is not allowed."""

import json
import math

import numpy as np
import pytest
from transformers import AutoConfig, BertConfig, CLIPConfig, CLIPVisionConfig, Swinv2Config

from modeling_fdt import FDTConfig
from tests.conftest import build_tiny_config


def test_defaults_are_the_papers():
    config = FDTConfig()
    assert (config.codebook_size, config.codebook_dim, config.grounding_temperature) == (16384, 512, 1000.0)
    assert (config.grounding_activation, config.token_pooling, config.padding_score) == ("sparsemax", "max", "zero")
    assert config.logit_scale_max == pytest.approx(math.log(100))
    text = config.text_config
    assert (text.model_type, text.vocab_size, text.pad_token_id) == ("clip_text_model", 49409, 0)
    assert (text.bos_token_id, text.eos_token_id, text.max_position_embeddings) == (49407, 49408, 77)
    vision = config.vision_config
    assert (vision.model_type, vision.hidden_size, vision.patch_size) == ("clip_vision_model", 768, 32)


def test_presets_take_fields():
    assert FDTConfig.vit_b_32(codebook_size=8).codebook_size == 8
    assert FDTConfig.vit_b_16().vision_config.patch_size == 16
    swin = FDTConfig.swin_b().vision_config
    assert isinstance(swin, Swinv2Config) and (swin.hidden_size, swin.window_size) == (1024, 7)


def test_towers_are_given_as_dicts_or_objects():
    config = FDTConfig(text_config={"hidden_size": 64, "num_attention_heads": 2}, vision_config=Swinv2Config())
    assert (config.text_config.hidden_size, config.text_config.vocab_size) == (64, 49409)
    assert FDTConfig(text_config={"model_type": "bert", "vocab_size": 7}).text_config.vocab_size == 7
    assert FDTConfig(text_config=BertConfig(vocab_size=9)).text_config.vocab_size == 9


def test_given_dicts_are_not_changed():
    text_config = {"hidden_size": 64, "num_attention_heads": 2}
    FDTConfig(text_config=text_config)
    assert text_config == {"hidden_size": 64, "num_attention_heads": 2}


def test_projection_dim_is_codebook_dim():
    config = FDTConfig(projection_dim=24)
    assert config.codebook_dim == config.projection_dim == 24


@pytest.mark.parametrize("preset", [FDTConfig.vit_b_32, FDTConfig.swin_b, build_tiny_config])
def test_round_trip(tmp_path, preset):
    config = preset(grounding_temperature=7.5)
    config.save_pretrained(tmp_path)
    reloaded = AutoConfig.from_pretrained(tmp_path)
    assert type(reloaded) is FDTConfig
    assert {**reloaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert FDTConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["grounding_temperature"] == 7.5


def test_a_checkpoint_of_another_release_may_carry_new_fields(tmp_path):
    build_tiny_config().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["text_config"]["field_of_the_future"] = 1
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert FDTConfig.from_pretrained(tmp_path).text_config.field_of_the_future == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codebook_size": 0}, "`codebook_size` must be an integer above 0, got 0"),
        ({"codebook_size": True}, "`codebook_size` must be an integer above 0, got True"),
        ({"projection_dim": -1}, "`projection_dim` must be an integer above 0, got -1"),
        (
            {"text_config": {"model_type": "t5"}},
            r"`text_config` must be .* text tower, got T5Config \(t5\): T5Model takes decoder_input_ids besides",
        ),
        ({"codebook_dim": 1.5}, "`codebook_dim` must be an integer above 0, got 1.5"),
        ({"grounding_activation": "relu"}, "`grounding_activation` must be one of .*'sparsemax'.* got 'relu'"),
        ({"token_pooling": "avg"}, "`token_pooling` must be one of .*'mean'.* got 'avg'"),
        ({"padding_score": "none"}, "`padding_score` must be one of .*'ignore'.* got 'none'"),
        ({"grounding_temperature": 0.0}, "`grounding_temperature` must be a finite number above 0, got 0.0"),
        ({"grounding_temperature": math.nan}, "`grounding_temperature` must be a finite number above 0, got nan"),
        ({"logit_scale_init_value": "2"}, "`logit_scale_init_value` must be a finite number"),
        ({"logit_scale_max": math.inf}, "`logit_scale_max` must be a finite number"),
        ({"freeze_patch_embedding": 1}, "`freeze_patch_embedding` must be True or False, got 1"),
        ({"codebok_size": 3}, "has no field `codebok_size`. Did you mean `codebook_size`"),
        ({"text_config": {"hiden_size": 3}}, "`text_config` .* has no field `hiden_size`. Did you mean `hidden_size`"),
        ({"vision_config": {"hidden_size": "wide"}}, "`vision_config` is refused .*hidden_size"),
        ({"vision_config": {"hidden_size": 100, "num_attention_heads": 3}}, "`vision_config` is refused .*100"),
        ({"vision_config": {"patch_size": 0}}, "`patch_size` of `vision_config` must be above 0, got 0"),
        (
            {"vision_config": CLIPVisionConfig(image_size=-1)},
            "`image_size` of `vision_config` must be above 0, got -1",
        ),
        ({"text_config": {"num_attention_heads": 0}}, "`num_attention_heads` of `text_config` must be above 0, got 0"),
        ({"vision_config": {"model_type": "vit", "patch_size": [4, 0]}}, r"`patch_size` .* above 0, got \[4, 0\]"),
        ({"vision_config": {"model_type": "unheard_of"}}, "`vision_config` has `model_type` 'unheard_of'"),
        ({"vision_config": "ViT-B/32"}, "`vision_config` must be a configuration, a dict or None, got 'ViT-B/32'"),
        ({"vision_config": CLIPConfig()}, r"`vision_config` must be .* tower, got CLIPConfig \(clip\): give its"),
    ],
)
def test_refusals_name_field_value_and_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match="(?s)" + message):
        FDTConfig(**fields)


def test_numbers_of_numpy_become_numbers_of_python(tmp_path):
    config = build_tiny_config(
        codebook_size=np.int64(8), grounding_temperature=np.float32(0.5), logit_scale_max=np.float64(2)
    )
    config.save_pretrained(tmp_path)
    for each in (config, FDTConfig.from_pretrained(tmp_path)):
        numbers = (each.codebook_size, each.grounding_temperature, each.logit_scale_max)
        assert numbers == (8, 0.5, 2.0) and [type(number) for number in numbers] == [int, float, float]
    with pytest.raises(ValueError, match="`codebook_size` must be an integer above 0, got 8.0"):
        build_tiny_config(codebook_size=np.float32(8))


def test_assignment_is_checked_too(tiny_config):
    with pytest.raises(ValueError, match="`grounding_temperature` must be a finite number above 0, got -1"):
        tiny_config.grounding_temperature = -1
    assert tiny_config.grounding_temperature == 5.0
