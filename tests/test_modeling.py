"""FDT models: loss, padding, loading, options, and the error of every wrong input."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
    SiglipTextConfig,
)

from modeling_fdt import FDTForImageClassification, FDTModel, FDTTextModel, FDTVisionModel, modeling_fdt
from tests.conftest import build_tiny_config


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT_TOWERS = {
    "clip": SMALL,
    "bert": BertConfig(**SMALL, vocab_size=49409),
    "roberta": RobertaConfig(**SMALL, vocab_size=49409, pad_token_id=0),
    "siglip": SiglipTextConfig(**SMALL, vocab_size=49409, max_position_embeddings=77),
}


def test_logits_are_scaled_cosines_and_the_loss_is_symmetric(tiny_model, inputs):
    output = tiny_model(**inputs)
    torch.testing.assert_close(output.image_embeds.norm(dim=-1), torch.ones(3))
    cosines = output.image_embeds @ output.text_embeds.T
    torch.testing.assert_close(output.logits_per_image, math.exp(2.6592) * cosines)
    torch.testing.assert_close(output.logits_per_text, output.logits_per_image.T)
    rows, columns = output.logits_per_image.log_softmax(dim=1), output.logits_per_image.log_softmax(dim=0)
    torch.testing.assert_close(output.loss, -(rows.diagonal().mean() + columns.diagonal().mean()) / 2)
    assert tiny_model(**inputs, return_loss=False).loss is None


def test_embeddings_are_combinations_of_codes(tiny_model, inputs):
    output = tiny_model(**inputs)
    for weights, embeds in (
        (output.image_code_weights, output.image_embeds),
        (output.text_code_weights, output.text_embeds),
    ):
        assert weights.shape == (3, 64) and (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3))
        assert ((weights > 0).sum(dim=-1) < 64).all()
        torch.testing.assert_close(nn.functional.normalize(weights @ tiny_model.codebook, dim=-1), embeds)


@pytest.mark.parametrize("activation", ["sparsemax", "softmax", "sigmoid"])
@pytest.mark.parametrize("pooling", ["max", "mean", "sum"])
def test_every_activation_and_pooling_trains(inputs, activation, pooling):
    model = FDTModel(build_tiny_config(grounding_activation=activation, token_pooling=pooling))
    model(**inputs).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_the_temperature_divides_the_scores(inputs):
    cold, hot = (FDTModel(build_tiny_config(grounding_temperature=value)).eval() for value in (0.5, 500.0))
    hot.load_state_dict(cold.state_dict())
    num_cold, num_hot = ((model(**inputs).image_code_weights > 0).sum() for model in (cold, hot))
    assert num_cold < num_hot


def test_the_logit_scale_is_capped(tiny_model, inputs):
    tiny_model.logit_scale.data.fill_(6.0)
    output = tiny_model(**inputs)
    torch.testing.assert_close(output.logits_per_image, 100 * output.image_embeds @ output.text_embeds.T)
    output.loss.backward()
    assert tiny_model.logit_scale.grad != 0  # so that training can bring it down


@pytest.mark.parametrize("padding_score", ["zero", "ignore"])
@pytest.mark.parametrize("pooling", ["max", "mean", "sum"])
def test_caption_does_not_depend_on_padding(tokenizer, padding_score, pooling):
    model = FDTModel(build_tiny_config(padding_score=padding_score, token_pooling=pooling)).eval()
    longer = ["a cat", "a cat that is sitting on a mat with a very long story about it", " ".join(["x"] * 100)]

    def embed(captions, **kwargs):
        batch = tokenizer(captions, truncation=True, return_tensors="pt", **kwargs)
        return model.get_text_features(**batch).text_embeds[0]

    alone = embed(["a cat"])
    # Another batch is another order of summation in float32.
    torch.testing.assert_close(embed(longer, padding=True), alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(embed(["a cat"], padding="max_length"), alone, atol=1e-6, rtol=0)
    without_mask = model.get_text_features(tokenizer(["a cat"], return_tensors="pt")["input_ids"]).text_embeds[0]
    torch.testing.assert_close(without_mask, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("text", [*TEXT_TOWERS, "gpt2"])
@pytest.mark.parametrize("place", ["left", "between"])
def test_caption_does_not_depend_on_where_its_padding_stands(text, place, tokenizer):
    gpt2 = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=49409, n_positions=77)
    model = FDTModel(build_tiny_config(text_config={**TEXT_TOWERS, "gpt2": gpt2}[text])).eval()
    batch = tokenizer(["a cat", "a cat that is sitting on a mat"], padding=True, return_tensors="pt")
    order = {"left": [4, 5, 6, 7, 8, 9, 0, 1, 2, 3], "between": [0, 4, 1, 5, 6, 2, 7, 8, 3, 9]}[place]
    moved = {name: torch.stack([value[0, order], value[1]]) for name, value in batch.items()}
    expected, result = (model.get_text_features(**each) for each in (batch, moved))
    torch.testing.assert_close(result.text_embeds, expected.text_embeds, atol=1e-6, rtol=0)
    # Features stand where their tokens do.
    features = result.last_hidden_state[moved["attention_mask"].bool()]
    expected_features = expected.last_hidden_state[batch["attention_mask"].bool()]
    torch.testing.assert_close(features, expected_features, atol=1e-5, rtol=0)


def test_what_is_given_for_each_token_follows_its_token(tokenizer):
    config = build_tiny_config(text_config=BertConfig(**SMALL, vocab_size=49409))
    model = FDTModel(config).eval()
    batch = dict(tokenizer("a cat", return_tensors="pt"))
    batch |= {"position_ids": torch.tensor([[3, 1, 4, 2]]), "token_type_ids": torch.tensor([[0, 1, 1, 0]])}
    padded = {name: nn.functional.pad(value, (3, 0)) for name, value in batch.items()}
    embeds, padded_embeds = (model.get_text_features(**each).text_embeds for each in (batch, padded))
    torch.testing.assert_close(padded_embeds, embeds, atol=1e-6, rtol=0)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_a_caption_does_not_depend_on_how_long_it_could_be(pooling, tokenizer):
    batch = tokenizer(["a cat", "a cat that is sitting on a mat"], padding=True, return_tensors="pt")
    weights = []
    for context_length in (77, 32768):
        torch.manual_seed(0)
        text_config = LlamaConfig(
            **SMALL, num_key_value_heads=2, vocab_size=49409, max_position_embeddings=context_length
        )
        model = FDTModel(build_tiny_config(text_config=text_config, token_pooling=pooling, grounding_temperature=0.05))
        weights.append(model.eval().get_text_features(**batch).text_code_weights)
    torch.testing.assert_close(weights[0], weights[1])
    assert (weights[1] > 0).sum(dim=-1).max() < 64  # not all codes alike


def test_padding_scores_of_the_two_kinds_differ_for_short_captions_only(tokenizer):
    # With softmax a code whose score is negative at every token, and so floored at 0 in the first kind, has a weight.
    zero, ignore = (
        FDTModel(build_tiny_config(padding_score=kind, grounding_activation="softmax")).eval()
        for kind in ("zero", "ignore")
    )
    ignore.load_state_dict(zero.state_dict())
    short = tokenizer(["a cat"], return_tensors="pt")
    full = tokenizer([" ".join(["x"] * 100)], truncation=True, return_tensors="pt")
    weights = [
        [model.get_text_features(**batch).text_code_weights for model in (zero, ignore)] for batch in (short, full)
    ]
    assert not torch.allclose(*weights[0])
    torch.testing.assert_close(*weights[1])


def test_grounding_fields_take_effect_at_once(tiny_model, inputs):
    for name, value in (
        ("padding_score", "ignore"),
        ("token_pooling", "mean"),
        ("grounding_activation", "softmax"),
        ("grounding_temperature", 2.0),
    ):
        setattr(tiny_model.config, name, value)
        reloaded = FDTModel(copy.deepcopy(tiny_model.config)).eval()
        reloaded.load_state_dict(tiny_model.state_dict())
        for output in ("text_embeds", "image_embeds"):
            torch.testing.assert_close(tiny_model(**inputs)[output], reloaded(**inputs)[output], rtol=0, atol=0)


@pytest.mark.parametrize("text", TEXT_TOWERS)
def test_what_the_towers_say_stands_for_what_they_are_given(text, tokenizer, images, captions, tiny_processor):
    model = FDTModel(build_tiny_config(text_config=TEXT_TOWERS[text])).eval()
    tokenizer.padding_side = "left"
    inputs = tiny_processor(images=images, text=captions, return_tensors="pt")
    tokenizer.padding_side = "right"
    expected = model(**inputs)
    features = {
        "patch_features": model.get_patch_features(inputs["pixel_values"]),
        "token_features": model.get_token_features(inputs["input_ids"], inputs["attention_mask"]),
    }
    outputs = model(**features, attention_mask=inputs["attention_mask"])
    # The grounding sees padding on the left here, which only reorders float32 sums.
    torch.testing.assert_close(outputs.logits_per_image, expected.logits_per_image, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=0, atol=1e-5)
    halves = {name: value.half() for name, value in features.items()}
    queries = model.get_token_queries(model(**halves, attention_mask=inputs["attention_mask"]))
    for half, whole in zip(queries, model.get_token_queries(expected, inputs["pixel_values"]), strict=True):
        is_token = inputs["attention_mask"].bool() if half is queries[1] else slice(None)
        torch.testing.assert_close(half[is_token], whole[is_token], rtol=0, atol=5e-3)
    with pytest.raises(ValueError, match="takes one of"):
        model(**inputs, patch_features=features["patch_features"])


def test_one_modality_alone_is_a_slice_of_both(tiny_model, inputs):
    both = tiny_model(**inputs)
    images = tiny_model(pixel_values=inputs["pixel_values"])
    texts = tiny_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    torch.testing.assert_close(images.image_embeds, both.image_embeds)
    torch.testing.assert_close(texts.text_embeds, both.text_embeds)
    assert images.loss is images.logits_per_image is images.text_embeds is None
    assert list(images) == ["image_embeds", "image_code_weights", "vision_model_output", "pooler_output"]
    assert list(texts) == ["text_embeds", "text_code_weights", "text_model_output", "pooler_output"]
    assert images.pooler_output is images.image_embeds and texts.pooler_output is texts.text_embeds
    assert both.pooler_output is None


@pytest.mark.parametrize("cls", [FDTModel, FDTVisionModel, FDTTextModel])
def test_each_half_loads_from_a_full_checkpoint(cls, tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    model, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    full = tiny_model.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, full[name], rtol=0, atol=0)


def test_the_halves_compute_what_the_whole_computes(tiny_model, inputs, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    output = tiny_model(**inputs)
    image = FDTVisionModel.from_pretrained(tmp_path)(inputs["pixel_values"])
    text = FDTTextModel.from_pretrained(tmp_path)(inputs["input_ids"], inputs["attention_mask"])
    torch.testing.assert_close(image.image_embeds, output.image_embeds, rtol=0, atol=0)
    torch.testing.assert_close(text.text_embeds, output.text_embeds, rtol=0, atol=0)
    torch.testing.assert_close(text.pooler_output, text.text_embeds, rtol=0, atol=0)


def test_sharded_checkpoints(tiny_model, inputs, tmp_path):
    tiny_model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    reloaded = FDTModel.from_pretrained(tmp_path)
    torch.testing.assert_close(reloaded(**inputs).logits_per_image, tiny_model(**inputs).logits_per_image)


def test_auto_classes(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is FDTModel
    assert type(AutoModelForZeroShotImageClassification.from_pretrained(tmp_path)) is FDTModel
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is FDTForImageClassification


@pytest.mark.parametrize("half_class", [FDTVisionModel, FDTTextModel])
def test_a_checkpoint_of_one_half(half_class, tiny_config, inputs, tmp_path):
    half = half_class(tiny_config).eval()
    half.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is half_class
    given = inputs[half_class.main_input_name]
    torch.testing.assert_close(loaded(given).pooler_output, half(given).pooler_output, rtol=0, atol=0)

    is_vision = half_class is FDTVisionModel
    other_class, other_tower = (FDTTextModel, "text_tower") if is_vision else (FDTVisionModel, "vision_tower")
    for wrong_class in (other_class, FDTModel):
        message = f"{wrong_class.__name__} needs a {other_tower}, but .* was saved by .*{half_class.__name__}"
        with pytest.raises(ValueError, match=message):
            wrong_class.from_pretrained(tmp_path)

    content = json.loads((tmp_path / "config.json").read_text())
    del content["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"FDTModel needs a {other_tower}, but .* by a class that"):
        AutoModel.from_pretrained(tmp_path)
    assert type(half_class.from_pretrained(tmp_path)) is half_class


def test_a_classifier_is_no_model_of_images_and_captions(tiny_config, tmp_path):
    FDTForImageClassification(tiny_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="FDTModel needs a text_tower, but .*FDTForImageClassification"):
        AutoModel.from_pretrained(tmp_path)


def test_auto_model_builds_a_new_model_of_a_configuration(tiny_config):
    assert type(AutoModel.from_config(tiny_config)) is FDTModel


def test_what_a_checkpoint_lacks_is_initialised_as_in_a_new_model(tiny_config):
    """transformers initialises modules that hold no tensor themselves in its own code only: see `is_custom_code`."""
    model = FDTModel.from_pretrained(None, config=tiny_config, state_dict={})
    # CLIP's own initialisation of an attention block: hidden_size**-0.5 * (2 * num_hidden_layers)**-0.5.
    std = model.text_tower.encoder.layers[0].self_attn.q_proj.weight.std().item()
    assert std == pytest.approx(32**-0.5 * 4**-0.5, rel=0.1)
    assert model.text_grounding.query_projection[1].weight.abs().max().item() == pytest.approx(32**-0.5, rel=0.02)
    assert model.logit_scale.item() == pytest.approx(2.6592)


def test_the_codebook_starts_standard_normal(tiny_model):
    assert tiny_model.codebook.mean().abs() < 0.1 and tiny_model.codebook.std().item() == pytest.approx(1, rel=0.05)


def test_frozen_parts_stay_frozen_after_loading(tmp_path):
    model = FDTModel(build_tiny_config(freeze_patch_embedding=True))
    model.save_pretrained(tmp_path)
    reloaded, _ = FDTModel.from_pretrained(tmp_path, output_loading_info=True)
    frozen, frozen_after_loading = (
        {name for name, p in each.named_parameters() if not p.requires_grad} for each in (model, reloaded)
    )
    assert frozen == frozen_after_loading
    assert frozen == {
        "vision_tower.embeddings.patch_embedding.weight",
        # CLIP's pooled class token is no part of FDT.
        "vision_tower.post_layernorm.weight",
        "vision_tower.post_layernorm.bias",
    }


def test_image_classification_from_a_zero_shot_model(tiny_model, inputs, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    model = FDTForImageClassification.from_pretrained(tmp_path, num_labels=3)
    output = model(inputs["pixel_values"], labels=torch.tensor([0, 1, 2]))
    assert output.logits.shape == (3, 3) and output.loss.item() > 0
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    # The zero-shot classifier is a special case.
    zero_shot = tiny_model(**inputs)
    model.classifier.weight.data = zero_shot.text_embeds.detach() * tiny_model.logit_scale.exp().detach()
    model.classifier.bias.data.zero_()
    torch.testing.assert_close(model(inputs["pixel_values"]).logits, zero_shot.logits_per_image)


def test_hidden_states_and_attentions(tiny_config, inputs):
    model = FDTModel(tiny_config).eval()
    model.set_attn_implementation("eager")
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    for tower_output in (output.vision_model_output, output.text_model_output):
        assert len(tower_output.hidden_states) == 3 and len(tower_output.attentions) == 2


def test_tuples(tiny_model, inputs):
    output = tiny_model(**inputs)
    as_tuple = tiny_model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(output.to_tuple())
    torch.testing.assert_close(as_tuple[0], output.loss)
    torch.testing.assert_close(as_tuple[3], output.image_embeds)


def test_gradient_checkpointing_changes_nothing(tiny_config, inputs):
    model = FDTModel(tiny_config).train()
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable()
    for tower in (checkpointed.vision_tower, checkpointed.text_tower):
        assert tower.is_gradient_checkpointing
    for each in (model, checkpointed):
        each(**inputs).loss.backward()
    for (name, p), q in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_bfloat16_and_autocast(tiny_model, inputs):
    expected = tiny_model(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = tiny_model(**inputs)
    half = copy.deepcopy(tiny_model).to(torch.bfloat16)(**inputs)
    assert half.image_embeds.dtype == torch.bfloat16
    for output in (autocast, half):
        # bfloat16 has 8 bits of precision; the factor on cosines in [-1, 1] is 14.
        assert (output.logits_per_image.float() - expected.logits_per_image).abs().max() < 14 * 2**-5
        torch.testing.assert_close(output.image_code_weights.float().sum(dim=-1), torch.ones(3), atol=1e-2, rtol=0)


@pytest.mark.parametrize("precision", ["autocast", "weights"])
def test_logits_and_loss_are_float32_in_half_precision(precision, tiny_model, inputs):
    tiny_model.logit_scale.data.fill_(math.log(100))
    model = tiny_model.to(torch.bfloat16) if precision == "weights" else tiny_model
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        output = model(**inputs)
    scale = model.capped_logit_scale.double().exp()
    logits = scale * output.image_embeds.double() @ output.text_embeds.double().T
    pairs = torch.arange(3)
    loss = (nn.functional.cross_entropy(logits, pairs) + nn.functional.cross_entropy(logits.T, pairs)) / 2
    assert output.logits_per_image.dtype == output.loss.dtype == torch.float32
    # float32 on values of at most 100; computed in bfloat16, logits are off by up to 0.08 here, and losses by 0.09.
    assert (output.logits_per_image - logits).abs().max() < 1e-4
    assert (output.loss - loss).abs() < 1e-4


def test_compiles_without_a_graph_break(tiny_model, inputs):
    compiled = torch.compile(tiny_model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs).logits_per_image, tiny_model(**inputs).logits_per_image)
    compiled(**inputs).loss.backward()
    grads = {name: p.grad.clone() for name, p in tiny_model.named_parameters() if p.grad is not None}
    tiny_model.zero_grad()
    tiny_model(**inputs).loss.backward()
    for name, p in tiny_model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(grads[name], p.grad, msg=name)


def test_exports_for_any_numbers_of_images_captions_and_tokens(tiny_model, inputs):
    num_captions, length = torch.export.Dim("num_captions"), torch.export.Dim("length", max=77)
    shapes = {name: {0: num_captions, 1: length} for name in ("input_ids", "attention_mask")}
    shapes["pixel_values"] = {0: torch.export.Dim("num_images")}
    program = torch.export.export(tiny_model, (), inputs, dynamic_shapes=shapes).module()
    other = {"pixel_values": torch.randn(5, 3, 32, 32), "input_ids": torch.randint(5, 99, (2, 11))}
    other["attention_mask"] = torch.tensor([[1] * 11, [1] * 4 + [0] * 7])
    for each in (inputs, other):
        logits = program(**each).logits_per_image
        torch.testing.assert_close(logits, tiny_model(**each).logits_per_image)
        assert logits.shape == (len(each["pixel_values"]), len(each["input_ids"]))


def test_a_training_batch_of_one_pair_is_warned_of_once(tiny_model, inputs, monkeypatch):
    warnings = []
    monkeypatch.setattr(modeling_fdt.logger, "warning_once", warnings.append)
    one = {name: value[:1] for name, value in inputs.items()}
    tiny_model(**one)
    tiny_model.train()
    tiny_model(**inputs)
    tiny_model(**one, return_loss=False)
    assert warnings == []
    loss = tiny_model(**one).loss
    loss.backward()
    assert loss == 0 and all((p.grad == 0).all() for p in tiny_model.parameters() if p.grad is not None)
    assert len(warnings) == 1 and "one pair" in warnings[0]


def test_device_map(tiny_model, inputs, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    model = FDTModel.from_pretrained(tmp_path, device_map="auto")
    torch.testing.assert_close(model(**inputs).logits_per_image, tiny_model(**inputs).logits_per_image)


def test_interpolated_position_embeddings(tiny_model):
    output = tiny_model(pixel_values=torch.randn(1, 3, 48, 64), interpolate_pos_encoding=True)
    assert output.vision_model_output.last_hidden_state.shape == (1, 6 * 8 + 1, 32)


def test_new_tokens_can_be_added(tiny_model, inputs):
    tiny_model.resize_token_embeddings(49410)
    assert tiny_model.config.text_config.vocab_size == 49410
    tiny_model(**inputs)


def test_bad_inputs_are_refused(tiny_model, inputs):
    with pytest.raises(ValueError, match="got neither"):
        tiny_model()
    with pytest.raises(ValueError, match=r"\(batch_size, 3, height, width\), got \(3, 4, 32, 32\)"):
        tiny_model(pixel_values=torch.zeros(3, 4, 32, 32))
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\)"):
        tiny_model(pixel_values=torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match=r"at most 77 positions, got \(1, 78\)"):
        tiny_model(input_ids=torch.ones(1, 78, dtype=torch.long))
    with pytest.raises(ValueError, match="`attention_mask` must have the shape of `input_ids`"):
        tiny_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"][:, :-1])


IDS = torch.ones(2, 5, dtype=torch.long)
NO_TOKEN = torch.tensor([[1] * 5, [0] * 5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_values": torch.zeros(0, 3, 32, 32)}, r"`pixel_values` must be .* got \(0, 3, 32, 32\)"),
        ({"pixel_values": "cat.png"}, "`pixel_values` must be a non-empty tensor .* got a str"),
        (
            {"patch_features": torch.zeros(2, 4, 33)},
            r"`patch_features` .*\(batch_size, num_patches, 32\), .*got \(2, 4, 33",
        ),
        ({"patch_features": torch.zeros(2, 32)}, r"`patch_features` must be .* got \(2, 32\)"),
        ({"token_features": torch.zeros(2, 0, 32)}, r"`token_features` must be .* got \(2, 0, 32\)"),
        ({"token_features": torch.zeros(0, 4, 32)}, r"`token_features` must be .* got \(0, 4, 32\)"),
        ({"input_ids": [[1, 2]]}, "`input_ids` must be a non-empty tensor .* got a list"),
        ({"input_ids": IDS[:0]}, r"`input_ids` must be .* got \(0, 5\)"),
        ({"input_ids": IDS[:, :0]}, r"`input_ids` must be .* got \(2, 0\)"),
        ({"input_ids": IDS.float()}, "`input_ids` must be integers, got torch.float32"),
        ({"input_ids": IDS + 49408}, "`input_ids` must be from 0 to 49408, got 49409"),
        ({"input_ids": IDS - 2}, "`input_ids` must be from 0 to 49408, got -1"),
        ({"input_ids": IDS, "attention_mask": [[1] * 5]}, "`attention_mask` must have the shape .* got a list"),
        ({"input_ids": IDS, "attention_mask": NO_TOKEN}, "`attention_mask` .* at least one token .* row 1"),
        (
            {"token_features": torch.zeros(2, 5, 32), "attention_mask": NO_TOKEN},
            "`attention_mask` .* at least one token .* row 1",
        ),
        (
            {"token_features": torch.zeros(2, 5, 32), "attention_mask": NO_TOKEN[:, 1:]},
            r"`attention_mask` must have the shape of `token_features`, \(2, 5\), got \(2, 4\)",
        ),
        ({"input_ids": IDS, "atention_mask": IDS}, "no option `atention_mask`. Did you mean `attention_mask`"),
        ({"patch_features": torch.zeros(2, 4, 32), "output_attention": True}, "no option `output_attention`"),
    ],
)
def test_wrong_values_and_names_are_refused(tiny_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**arguments)


def test_options_are_those_of_the_tower(tiny_model, inputs):
    with pytest.raises(
        ValueError, match="CLIPVisionModel has no option `interpolate_pos`.*`interpolate_pos_encoding`"
    ):
        tiny_model.get_image_features(inputs["pixel_values"], interpolate_pos=True)
    with pytest.raises(ValueError, match="CLIPTextModel has no option `interpolate_pos_encoding`"):
        tiny_model.get_token_features(inputs["input_ids"], interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="has no option `topk`"):
        tiny_model.explain(**inputs, topk=3)
    tiny_model(**inputs, task_ids=None)  # PEFT hands on what it was not given as None


def test_numbers_of_images_and_captions_differ(tiny_model, inputs):
    fewer = {**inputs, "pixel_values": inputs["pixel_values"][:2]}
    output = tiny_model(**fewer)
    assert output.logits_per_image.shape == (2, 3) and output.loss is None
    with pytest.raises(ValueError, match="as many captions as images, got 3 and 2"):
        tiny_model.train()(**fewer)
