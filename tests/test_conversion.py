"""Conversion of the original's checkpoints, both ways, and its refusals."""

import json
import logging
import math
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, CLIPModel

from conversion import command_line
from conversion.convert_fdt_to_hf import ConversionArguments, convert_fdt_to_hf
from conversion.convert_hf_to_fdt import BackConversionArguments, convert_hf_to_fdt
from conversion.key_map import DROPPED, dropped_names, key_map, to_original, to_ours
from conversion.original_checkpoint import read_original_checkpoint, write_original_checkpoint
from conversion.original_config import MODEL_TYPES, SWIN_BASE, parse_original_config, read_original_config
from conversion.to_transformers import convert
from modeling_fdt import FDTModel

from . import golden


CASE = "sparsemax_max_T1000_decay0.81"


@pytest.fixture(scope="module")
def checkpoint_paths(tmp_path_factory):
    return {name: golden.write_checkpoint(name, tmp_path_factory.mktemp(name)) for name in golden.CHECKPOINTS}


@pytest.fixture(scope="module")
def converted(checkpoint_paths, tmp_path_factory):
    """The recorded FDT checkpoint as the command converts it."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    config = golden.config_path("tiny_clip_fdt", CASE)
    convert_fdt_to_hf(ConversionArguments(str(checkpoint_paths["tiny_clip_fdt"]), str(config), str(folder)))
    return folder


def raw_config(checkpoint: str = "tiny_clip_fdt") -> dict:
    case = CASE if checkpoint == "tiny_clip_fdt" else None
    return json.loads(golden.config_path(checkpoint, case).read_text(encoding="utf-8"))


def write_config(folder: Path, raw: dict) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    return path


def states_are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# What the command writes


def test_folder_loads_through_auto_classes(converted):
    recorded = golden.read_recording("tiny_clip_fdt", CASE).tensors
    processor = AutoProcessor.from_pretrained(converted)
    model, report = AutoModel.from_pretrained(converted, output_loading_info=True)
    assert isinstance(model, FDTModel)
    assert not any(report.values()), report
    inputs = processor(
        images=Image.new("RGB", (90, 70)), text=["a photo of a cat.", ""], padding="max_length", return_tensors="pt"
    )
    assert torch.equal(inputs["input_ids"], recorded["input_ids"][[0, 2]])
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    assert model(**inputs).logits_per_image.shape == (1, 2)


def test_card_states_origin_license_and_limits(converted):
    card = (converted / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "apache-2.0"
    assert metadata["pipeline_tag"] == "zero-shot-image-classification"
    for text in (
        "SHA-256",
        "86,560",
        "ckpt.pth.tar",
        "temperature 1.16439",
        "512 finite discrete tokens",
        "## Limits",
    ):
        assert text in card
    assert "{{" not in card and "{%" not in card


def test_keys_without_the_module_prefix_are_accepted(checkpoint_paths, tmp_path):
    checkpoint = read_original_checkpoint(checkpoint_paths["tiny_clip_fdt"])
    bare = tmp_path / "bare.pth.tar"
    torch.save({"model": checkpoint.tensors, "optimizer": {}, "last_iter": checkpoint.last_iter}, bare)
    assert states_are_equal(read_original_checkpoint(bare).tensors, checkpoint.tensors)
    both = tmp_path / "both.pth.tar"
    torch.save({"model": {"module.a": torch.ones(1), "a": torch.ones(1)}, "last_iter": 0}, both)
    with pytest.raises(ValueError, match="twice"):
        read_original_checkpoint(both)


def test_yaml_equals_json(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw_config()), encoding="utf-8")
    assert read_original_config(path) == read_original_config(golden.config_path("tiny_clip_fdt", CASE))


def test_defaults_are_the_originals():
    raw = raw_config()
    for section, kept in (("image_encode", ("embed_dim",)), ("text_encode", ("embed_dim", "text_encode_type"))):
        values = raw["model"]["kwargs"][section]
        raw["model"]["kwargs"][section] = {name: values[name] for name in kept}
    raw["model"]["kwargs"]["fdt"] |= {"raw_img_ft_dim": 768, "raw_txt_ft_dim": 512}
    for model_type, patch_size in (("clip_fdt_vitb32", 32), ("clip_fdt_vitb16", 16)):
        raw["model"]["type"] = model_type
        config = parse_original_config(raw)
        vision, text = config.vision, config.text
        assert (vision.width, vision.layers, vision.heads, vision.patch_size, vision.input_resolution) == (
            *(768, 12, 12),
            *(patch_size, 224),
        )
        assert (text.width, text.layers, text.heads, text.context_length) == (512, 12, 8, 77)


# Round trips


def test_round_trip_of_fdt_is_exact(converted, checkpoint_paths, tmp_path):
    convert_hf_to_fdt(BackConversionArguments(str(converted), str(tmp_path / "original"), last_iter=86560))
    original = read_original_checkpoint(checkpoint_paths["tiny_clip_fdt"])
    back = read_original_checkpoint(tmp_path / "original" / "ckpt.pth.tar")
    dropped = dropped_names(original.tensors, "clip_fdt_vitb32")
    assert states_are_equal(back.tensors, {k: v for k, v in original.tensors.items() if k not in dropped})
    assert back.last_iter == original.last_iter

    again = tmp_path / "again"
    arguments = (str(tmp_path / "original" / name) for name in ("ckpt.pth.tar", "config.json"))
    convert_fdt_to_hf(ConversionArguments(*arguments, str(again)))
    first, second = (AutoModel.from_pretrained(folder) for folder in (converted, again))
    assert states_are_equal(first.state_dict(), second.state_dict())
    assert first.config.to_diff_dict() == second.config.to_diff_dict()


def test_round_trip_of_the_clip_baseline_is_exact(checkpoint_paths, tmp_path):
    there, back, again = (str(tmp_path / name) for name in ("there", "back", "again"))
    config = golden.config_path("tiny_clip")
    convert_fdt_to_hf(ConversionArguments(str(checkpoint_paths["tiny_clip"]), str(config), there))
    convert_hf_to_fdt(BackConversionArguments(there, back))
    convert_fdt_to_hf(ConversionArguments(f"{back}/ckpt.pth.tar", f"{back}/config.json", again))
    first, second = (AutoModel.from_pretrained(folder) for folder in (there, again))
    assert isinstance(first, CLIPModel)
    assert states_are_equal(first.state_dict(), second.state_dict())


def test_clip_baseline_with_a_logit_scale_above_the_cap(checkpoint_paths):
    checkpoint = read_original_checkpoint(checkpoint_paths["tiny_clip"])
    checkpoint.tensors["logit_scale"] = torch.tensor([6.0])
    model = convert(checkpoint, read_original_config(golden.config_path("tiny_clip")))
    assert model.logit_scale.exp().item() == pytest.approx(100, rel=1e-6)  # one float32 rounding of the logarithm


def test_way_back_refuses_what_the_original_cannot_express(converted, tmp_path):
    model = AutoModel.from_pretrained(converted)
    for field, value in (("padding_score", "ignore"), ("logit_scale_max", 3.0)):
        kept = getattr(model.config, field)
        setattr(model.config, field, value)
        model.save_pretrained(tmp_path / field)
        setattr(model.config, field, kept)
        with pytest.raises(ValueError, match=f"cannot express this model:\n  {field}"):
            convert_hf_to_fdt(BackConversionArguments(str(tmp_path / field), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


# Other model types, by their public names


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that keep activations near 1; norm weights are near 1, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        fan_in = values[0].numel() if len(shape) > 1 else 25
        tensors[name] = values / fan_in**0.5 + (1.0 if "ln_" in name or "norm" in name else 0.0)
    return tensors


def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def clip_block_shapes(prefix: str, width: int, layers: int) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for layer in range(layers):
        block = f"{prefix}.transformer.resblocks.{layer}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= linear(f"{block}.attn.out_proj", width, width) | norm(f"{block}.ln_1", width)
        shapes |= linear(f"{block}.mlp.c_fc", 4 * width, width) | linear(f"{block}.mlp.c_proj", width, 4 * width)
        shapes |= norm(f"{block}.ln_2", width)
    return shapes


def vit_shapes(width: int, layers: int, patch_size: int, num_patches: int, embed_dim: int) -> dict:
    return {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (num_patches + 1, width),
        "visual.proj": (width, embed_dim),
        "visual.conv1.weight": (width, 3, patch_size, patch_size),
        **norm("visual.ln_pre", width),
        **clip_block_shapes("visual", width, layers),
        **norm("visual.ln_post", width),
    }


def swin_shapes(embed_dim: int, depths: tuple, num_heads: tuple, window: int, side: int, classes: int) -> dict:
    """Names and shapes of Microsoft's Swin v2, its buffers included; `side` in patches of 4 pixels."""
    shapes = {"visual.patch_embed.proj.weight": (embed_dim, 3, 4, 4), "visual.patch_embed.proj.bias": (embed_dim,)}
    shapes |= norm("visual.patch_embed.norm", embed_dim)
    for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        width, stage_side = embed_dim * 2**stage, side // 2**stage
        stage_window = min(window, stage_side)
        tokens = stage_window**2
        for block in range(depth):
            name = f"visual.layers.{stage}.blocks.{block}"
            if block % 2 and stage_side > window:
                shapes[f"{name}.attn_mask"] = (stage_side**2 // tokens, tokens, tokens)
            shapes |= {f"{name}.attn.logit_scale": (heads, 1, 1)}
            shapes |= {f"{name}.attn.q_bias": (width,), f"{name}.attn.v_bias": (width,)}
            shapes |= linear(f"{name}.attn.cpb_mlp.0", 512, 2) | {f"{name}.attn.cpb_mlp.2.weight": (heads, 512)}
            shapes[f"{name}.attn.relative_coords_table"] = (1, 2 * stage_window - 1, 2 * stage_window - 1, 2)
            shapes[f"{name}.attn.relative_position_index"] = (tokens, tokens)
            shapes |= {f"{name}.attn.qkv.weight": (3 * width, width)} | linear(f"{name}.attn.proj", width, width)
            shapes |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
            shapes |= linear(f"{name}.mlp.fc1", 4 * width, width) | linear(f"{name}.mlp.fc2", width, 4 * width)
        if stage + 1 < len(depths):
            shapes[f"visual.layers.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
            shapes |= norm(f"visual.layers.{stage}.downsample.norm", 2 * width)
    width = embed_dim * 2 ** (len(depths) - 1)
    return shapes | norm("visual.norm", width) | linear("visual.head", classes, width)


def text_shapes(width: int, layers: int, embed_dim: int) -> dict:
    return {
        "encode_text.positional_embedding": (77, width),
        **clip_block_shapes("encode_text", width, layers),
        "encode_text.token_embedding.weight": (49409, width),
        **norm("encode_text.ln_final", width),
        **linear("encode_text.text_projection", embed_dim, width),
    }


def fdt_shapes(image_width: int, text_width: int, num_codes: int, dim: int) -> dict:
    shapes = {"space_dict": (num_codes, dim), "logit_scale": (1,)}
    for query, width in (("img_query_model", image_width), ("txt_query_model", text_width)):
        shapes |= norm(f"{query}.q_map.0", width) | linear(f"{query}.q_map.1", dim, width)
        shapes |= norm(f"{query}.q_map.3", dim) | linear(f"{query}.q_map.4", dim, dim)
    return shapes


def test_shapes_below_are_those_of_the_recorded_checkpoint(checkpoint_paths):
    names = vit_shapes(96, 2, 16, 16, 64) | text_shapes(64, 2, 64) | fdt_shapes(96, 64, 512, 64)
    names["logit_scale_sd"] = (1,)
    recorded = read_original_checkpoint(checkpoint_paths["tiny_clip_fdt"]).tensors
    assert {name: tuple(tensor.shape) for name, tensor in recorded.items()} == names


SMALL_SWIN = {
    "DATA": {"IMG_SIZE": 64},
    "MODEL": {
        "TYPE": "swinv2",
        "NUM_CLASSES": 32,
        "SWINV2": SWIN_BASE["MODEL"]["SWINV2"]
        | {"EMBED_DIM": 16, "DEPTHS": [2, 4, 2], "NUM_HEADS": [1, 2, 4], "WINDOW_SIZE": 4}
        | {"PRETRAINED_WINDOW_SIZES": [0, 0, 0]},
    },
}


def swin_checkpoint(folder: Path) -> tuple[Path, Path, Path]:
    """A small CLIP+FDT checkpoint with Swin v2, and its two configuration files."""
    raw = raw_config()
    raw["model"]["type"] = "clip_fdt_swinB_v2"
    raw["model"]["kwargs"]["image_encode"] = {"embed_dim": 32}
    raw["model"]["kwargs"]["fdt"] |= {"raw_img_ft_dim": 64, "sd_temperature": 1.0}
    raw["t_decay"] |= {"org_t": 1.0, "sd_T_decay_w": 1}
    shapes = swin_shapes(16, (2, 4, 2), (1, 2, 4), 4, 16, 32) | text_shapes(64, 2, 64) | fdt_shapes(64, 64, 512, 64)
    shapes["logit_scale_sd"] = (1,)
    write_original_checkpoint(folder / "ckpt.pth.tar", random_tensors(shapes), 86560)
    (folder / "swin.yaml").write_text(yaml.safe_dump(SMALL_SWIN), encoding="utf-8")
    return folder / "ckpt.pth.tar", write_config(folder, raw), folder / "swin.yaml"


def test_swin_is_converted_verified_and_comes_back(tmp_path, caplog):
    checkpoint, config, swin = map(str, swin_checkpoint(tmp_path))
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    with caplog.at_level(logging.INFO):
        convert_fdt_to_hf(ConversionArguments(checkpoint, config, there, swin_config=swin))
    assert "verified" in caplog.text
    for name in ("attn_mask", "relative_coords_table", "relative_position_index", "visual.head.weight"):
        assert f"{name}: " in caplog.text
    convert_hf_to_fdt(BackConversionArguments(there, back))
    original = read_original_checkpoint(checkpoint).tensors
    dropped = dropped_names(original, "clip_fdt_swinB_v2")
    kept = {name: tensor for name, tensor in original.items() if name not in dropped}
    assert states_are_equal(read_original_checkpoint(f"{back}/ckpt.pth.tar").tensors, kept)
    assert read_original_config(f"{back}/config.json", f"{back}/swin_config.yaml").vision == (
        read_original_config(config, swin).vision
    )


def test_every_model_type_has_a_list_of_dropped_names():
    assert DROPPED.keys() == MODEL_TYPES.keys()


@pytest.mark.parametrize("checkpoint", golden.CHECKPOINTS)
def test_key_map_is_its_own_inverse(checkpoint, checkpoint_paths):
    config = parse_original_config(raw_config(checkpoint))
    tensors = read_original_checkpoint(checkpoint_paths[checkpoint]).tensors
    entries = key_map(config)
    back = to_original(to_ours(tensors, entries), entries)
    assert states_are_equal(back, {entry.original: tensors[entry.original] for entry in entries})


@pytest.mark.slow
def test_full_size_checkpoint_in_6_gigabytes(tmp_path):
    shapes = vit_shapes(768, 12, 32, 49, 512) | text_shapes(512, 12, 512) | fdt_shapes(768, 512, 16384, 512)
    shapes["logit_scale_sd"] = (1,)
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    assert round(total / 1e6, 2) == 160.85  # the released ViT-B/32
    write_original_checkpoint(tmp_path / "ckpt.pth.tar", random_tensors(shapes), 86560)
    raw = raw_config()
    raw["model"]["kwargs"]["image_encode"] = {"embed_dim": 512}
    raw["model"]["kwargs"]["text_encode"] = {"embed_dim": 512, "text_encode_type": "Transformer"}
    raw["model"]["kwargs"]["fdt"] |= {"sd_num": 16384, "sd_dim": 512, "raw_img_ft_dim": 768, "raw_txt_ft_dim": 512}
    raw["t_decay"]["sd_T_decay_w"] = 1
    command = [sys.executable, "-m", "conversion.convert_fdt_to_hf", "--checkpoint", str(tmp_path / "ckpt.pth.tar")]
    command += ["--config", str(write_config(tmp_path, raw)), "--output_dir", str(tmp_path / "out")]
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(command, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)  # of this process alone, not of every one before
        process.returncode = os.waitstatus_to_exitcode(status)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert process.returncode == 0, lines
    peak = usage.ru_maxrss * 1024
    assert peak < 6e9, f"{peak / 1e9:.2f} GB"

    kept, dropped = (int(line.split()[-2].replace(",", "")) for line in lines if " tensors, " in line)
    assert kept + dropped == total
    model, report = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert sum(parameter.numel() for parameter in model.parameters()) == kept


# Bad input


class RunsCodeWhenRead:
    """A pickle that creates a file when it is executed."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def assert_refused(tmp_path: Path, checkpoint: Path, config: Path, *reasons: str) -> None:
    """The command ends with a status other than 0 and a one-line reason; nothing is left beside the input."""
    before = sorted(tmp_path.iterdir())
    argv = ["--checkpoint", str(checkpoint), "--config", str(config), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        command_line.run(convert_fdt_to_hf, ConversionArguments, argv)
    message = str(end.value.code)
    assert message.startswith("error: ") and len(message) < 5000
    for reason in reasons:
        assert reason in message
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path, raw_config())


@pytest.fixture
def checkpoint(checkpoint_paths):
    return checkpoint_paths["tiny_clip_fdt"]


def test_truncated_file_is_refused(tmp_path, checkpoint, config):
    content = checkpoint.read_bytes()
    for share in (0.5, 0.999):
        path = tmp_path / "truncated.pth.tar"
        path.write_bytes(content[: int(len(content) * share)])
        assert_refused(tmp_path, path, config, "truncated")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n<!DOCTYPE html><html>Google Drive can't scan this file for viruses</html>", "HTML"),
        (b"", "empty"),
        (b"just some text", "not a file that torch.save wrote"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, config, content, reason):
    path = tmp_path / "page.pth.tar"
    path.write_bytes(content)
    assert_refused(tmp_path, path, config, reason)
    assert_refused(tmp_path, tmp_path / "absent.pth.tar", config, "no such file")


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_hostile_pickle_is_refused_and_not_executed(tmp_path, config, save):
    trap, path = tmp_path / "trap", tmp_path / "hostile.pth.tar"
    save({"model": {}, "optimizer": RunsCodeWhenRead(trap), "last_iter": 0}, path)
    assert_refused(tmp_path, path, config, "refused", "could execute code")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "expected the keys `model`"),
        ({"state_dict": {}}, "expected the keys `model`"),
        ({"model": {"space_dict": torch.ones(2)}}, "`last_iter` must be the training step"),
        ({"model": {"space_dict": 3}, "last_iter": 0}, "must map names to tensors"),
        ({"model": {5: torch.ones(2)}, "last_iter": 0}, "must map names to tensors, got 5"),
        ({"model": {}, "last_iter": 10**30}, "`last_iter` must be the training step"),
        ({1: 2, "a": 3, (4, 5): 6}, "expected the keys `model`"),
    ],
)
def test_other_contents_are_refused(tmp_path, config, content, reason):
    torch.save(content, tmp_path / "other.pth.tar")
    assert_refused(tmp_path, tmp_path / "other.pth.tar", config, reason)


def test_half_a_state_dict_is_refused(tmp_path, checkpoint, config):
    tensors = read_original_checkpoint(checkpoint).tensors
    half = {name: tensor for name, tensor in tensors.items() if not name.startswith("encode_text.")}
    write_original_checkpoint(tmp_path / "half.pth.tar", half, 0)
    assert_refused(
        *(tmp_path, tmp_path / "half.pth.tar", config),
        *("28 names missing", "encode_text.token_embedding.weight", "encode_text.ln_final.bias"),
    )


def test_unknown_names_are_refused(tmp_path, checkpoint, config):
    tensors = read_original_checkpoint(checkpoint).tensors | {
        "visual.extra": torch.ones(3),
        "logit_bias": torch.ones(1),
    }
    write_original_checkpoint(tmp_path / "more.pth.tar", tensors, 0)
    assert_refused(
        tmp_path, tmp_path / "more.pth.tar", config, "2 names in the checkpoint that nothing maps", "visual.extra"
    )


def changed(path: str, value: object) -> dict:
    """The recorded configuration with one value changed, or left out where `value` is None."""
    raw = raw_config()
    *parents, last = path.split(".")
    section = raw
    for parent in parents:
        section = section[parent]
    section.pop(last) if value is None else section.update({last: value})
    return raw


@pytest.mark.parametrize(
    ("path", "value", "reasons"),
    [
        ("t_decay", None, ("`t_decay` is missing",)),
        ("t_decay.org_t", None, ("`t_decay.org_t` is missing",)),
        ("t_decay.org_t", "1000", ("`t_decay.org_t` must be a finite number",)),
        ("t_decay.org_T", 5, ("unknown fields ['org_T']",)),
        ("model", None, ("section `model`",)),
        ("model.type", "clip_res50", ("must be one of", "clip_res50")),
        ("model.type", "clip_fdt_swinB_v2", ("`model.kwargs.fdt.raw_img_ft_dim` is 96", "1024")),
        ("model.type", "clip_vitb32", ("nothing maps", "space_dict")),
        ("model.kwargs.fdt.sd_num", 1024, ("space_dict: (512, 64) in the checkpoint, (1024, 64) by the config",)),
        ("model.kwargs.fdt.sd_dim", 32, ("q_map.4.weight",)),
        ("model.kwargs.fdt.sd_num", True, ("must be a positive integer",)),
        ("model.kwargs.fdt.sd_num", 10**12, ("`model.kwargs.fdt.sd_num` must be a positive integer of at most",)),
        ("model.kwargs.fdt.sd_num", 10**9, ("space_dict: (512, 64) in the checkpoint, (1000000000, 64) by the",)),
        ("model.kwargs.fdt.sd_dim", 2**31 - 1, ("config: no model has these sizes",)),
        ("model.kwargs.image_encode.layers", 10**9, ("must be a positive integer of at most 1,024",)),
        ("model.kwargs.image_encode.input_resolution", 2**20, ("must be a positive integer of at most 4,096",)),
        ("model.type", ["clip_vitb32"], ("`model.type` must be one of",)),
        ("model.kwargs", [], ("`model.kwargs` must be a mapping, got []",)),
        ("t_decay.org_t", math.inf, ("`t_decay.org_t` must be a finite number",)),
        ("t_decay.org_t", math.nan, ("`t_decay.org_t` must be a finite number",)),
        ("t_decay.org_t", 10**400, ("`t_decay.org_t` must be a finite number",)),
        ("t_decay.sd_T_decay_w", 1e300, ("`t_decay` gives a temperature of inf at step 86560",)),
        ("model.kwargs.fdt.att_func_type", "relu", ("must be one of", "relu")),
        ("model.kwargs.fdt.sd_nums", 3, ("unknown fields ['sd_nums']",)),
        ("model.kwargs.fdt.raw_txt_ft_dim", 512, ("is 512, but the tower's tokens have 64",)),
        ("model.kwargs.image_encode.layers", 3, ("12 names missing",)),
        ("model.kwargs.image_encode.layers", 1, ("12 names in the checkpoint that nothing maps",)),
        ("model.kwargs.image_encode.heads", 5, ("must be a multiple of heads 5",)),
        ("model.kwargs.image_encode.patch_size", 32, ("visual.conv1.weight", "visual.positional_embedding")),
        ("model.kwargs.image_encode.input_resolution", 128, ("visual.positional_embedding",)),
        ("model.kwargs.text_encode.text_encode_type", "Bert", ("must be one of ['Transformer']",)),
        ("model.kwargs.text_encode.context_length", 64, ("encode_text.positional_embedding",)),
        ("model.kwargs.text_encode", None, ("must be a mapping",)),
    ],
)
def test_wrong_configs_are_refused(tmp_path, checkpoint, path, value, reasons):
    assert_refused(tmp_path, checkpoint, write_config(tmp_path, changed(path, value)), *reasons)


# Texts of configurations that break readers, and what they are refused for.
ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
UNREADABLE = {
    "c.json": ("{", "not valid JSON"),
    "c.yaml": ("a: [", "not valid YAML"),
    "c.txt": ("", "must be a .json, .yaml or .yml file, got"),
    "deep.json": ("[" * 100_000, "nested too deeply"),
    "deep.yaml": ("[" * 5_000, "nested too deeply"),
    "digits.json": (f'{{"model": {"9" * 5000}}}', "not valid JSON"),
    "hexadecimal.yaml": (f"model: {{type: 0x{'f' * 5000}}}", "a number of more than 4,300 digits"),
    "aliases.yaml": (f"{ALIASES}model: *a39", "its aliases stand for more than 100,000 values"),
    "merges.yaml": (f"{MERGES}model: *a39", "its aliases stand for more than 100,000 values"),
    "itself.yaml": ("model: &a {type: *a}", "its aliases stand for more than 100,000 values"),
    "keys.yaml": ("model: {1: 2, type: clip_vitb32}", "the names in `model` must be strings, got 1"),
    "lists.yaml": ("model: {[1]: 2}", "not valid YAML"),
    "date.yaml": ("model: {type: 2020-01-01}", "must be one of"),
    "list.json": ("[]", "section `model`"),
    "null.yaml": ("", "section `model`"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_configs_are_refused(tmp_path, checkpoint, name):
    text, reason = UNREADABLE[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert_refused(tmp_path, checkpoint, tmp_path / name, reason)


TOKENS = "encode_text.token_embedding.weight"


def with_nan_in_an_unused_row(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[-3, 0] = torch.nan  # `<|mask|>`, which no caption of the fixed batch holds
    return tensor


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        (TOKENS, with_nan_in_an_unused_row, f"{TOKENS}: 1 of 3,162,176 values are NaN, infinite or too large"),
        ("visual.ln_pre.weight", lambda tensor: tensor * torch.nan, "visual.ln_pre.weight: 96 of 96 values are NaN"),
        ("space_dict", lambda tensor: tensor.double() * 1e300, "too large for float32"),
        ("space_dict", torch.Tensor.int, "space_dict: its type must be one of"),
        ("logit_scale", torch.Tensor.bool, "logit_scale: its type must be one of"),
        ("space_dict", lambda tensor: tensor.to(torch.complex64), "got torch.complex64"),
        ("space_dict", torch.Tensor.to_sparse, "space_dict: it must be dense"),
        ("space_dict", lambda tensor: tensor.to("meta"), "space_dict: it has a shape but no values"),
        ("space_dict", lambda tensor: torch.zeros(1).expand(10**6, 10**6), "(1000000, 1000000) in the checkpoint"),
    ],
)
def test_damaged_tensors_are_refused(tmp_path, checkpoint, config, name, damage, reason):
    tensors = read_original_checkpoint(checkpoint).tensors
    model = tensors | {name: damage(tensors[name])}  # not written by our own function, which makes tensors contiguous
    torch.save({"model": model, "last_iter": 0}, tmp_path / "damaged.pth.tar")
    assert_refused(tmp_path, tmp_path / "damaged.pth.tar", config, reason)


@pytest.mark.parametrize("name", ["encode_text.text_projection.bias", "encode_text.text_projection.weight"])
def test_damaged_projections_of_the_clip_baseline_are_refused(tmp_path, checkpoint_paths, name):
    tensors = read_original_checkpoint(checkpoint_paths["tiny_clip"]).tensors
    write_original_checkpoint(tmp_path / "damaged.pth.tar", tensors | {name: tensors[name] * torch.nan}, 0)
    assert_refused(tmp_path, tmp_path / "damaged.pth.tar", golden.config_path("tiny_clip"), f"{name}: ", "NaN")


def test_damaged_bytes_inside_the_archive_are_refused(tmp_path, checkpoint, config):
    """Weights that are merely wrong pass every comparison with themselves; only their checksum tells."""
    content = bytearray(checkpoint.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    (tmp_path / "damaged.pth.tar").write_bytes(content)
    assert_refused(tmp_path, tmp_path / "damaged.pth.tar", config, "damaged", "the checksum of")


def test_packed_archives_are_refused(tmp_path, checkpoint, config):
    with (
        zipfile.ZipFile(checkpoint) as source,
        zipfile.ZipFile(tmp_path / "packed.pth.tar", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.namelist():
            target.writestr(member, source.read(member))
    assert_refused(tmp_path, tmp_path / "packed.pth.tar", config, "is compressed")


@pytest.mark.parametrize("command", [convert_fdt_to_hf, convert_hf_to_fdt])
def test_full_disk_is_told_and_leaves_nothing(tmp_path, checkpoint, config, converted, command):
    before = sorted(tmp_path.iterdir())
    out = str(tmp_path / "out")
    arguments = {
        convert_fdt_to_hf: ConversionArguments(str(checkpoint), str(config), out),
        convert_hf_to_fdt: BackConversionArguments(str(converted), out),
    }[command]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ValueError, match="out: cannot be written: "):
            command(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.iterdir()) == before


def damage_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_tower.final_layer_norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def poison_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["codebook"][7, 3] = torch.inf
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def set_config(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_weights, "not a checkpoint that transformers can load"),
        (lose_weights, "weights are missing: ['text_tower.final_layer_norm.weight']"),
        (poison_weights, "codebook: 1 of 32,768 values are NaN, infinite"),
        (set_config(codebook_size=10**12), "not a checkpoint that transformers can load"),
        (set_config(codebook_size="many"), "`codebook_size` must be an integer above 0"),
        (set_config(vision_config=[1]), "`vision_config` must be a configuration"),
        (set_config(model_type="bert"), "the model must be of type fdt or clip, got bert"),
        (set_config(model_type={}), "not a checkpoint that transformers can load"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "not a checkpoint that"),
        (lambda folder: (folder / "config.json").unlink(), "not a checkpoint that"),
    ],
)
def test_damaged_transformers_folders_are_refused(tmp_path, converted, damage, reason):
    shutil.copytree(converted, tmp_path / "model")
    damage(tmp_path / "model")
    argv = ["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=re.escape(reason)) as end:
        command_line.run(convert_hf_to_fdt, BackConversionArguments, argv)
    message = str(end.value.code)
    assert message.startswith("error: ") and len(message) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_failed_verification_leaves_nothing(tmp_path, checkpoint, config, monkeypatch):
    def convert_wrongly(*arguments):
        model = convert(*arguments)
        first = model.vision_tower.encoder.layers[0].self_attn
        first.q_proj, first.k_proj = first.k_proj, first.q_proj
        return model

    monkeypatch.setattr("conversion.to_transformers.convert", convert_wrongly)
    assert_refused(tmp_path, checkpoint, config, "verification failed", "image_embeds")


def test_output_into_a_folder_that_cannot_be_replaced(tmp_path, checkpoint, config, monkeypatch):
    """A mount, the working directory or a link to one: what was converted must be there in the end."""
    there, link = tmp_path / "there", tmp_path / "link"
    there.mkdir()
    link.symlink_to(there)
    inode = there.stat().st_ino
    monkeypatch.chdir(there)
    argv = ["--checkpoint", str(checkpoint), "--config", str(tmp_path / "absent.json")]
    for name in (".", str(link), str(there)):
        with pytest.raises(SystemExit):
            command_line.run(convert_fdt_to_hf, ConversionArguments, [*argv, "--output_dir", name])
        assert not any(there.iterdir())
    for name in (".", str(link)):
        convert_fdt_to_hf(ConversionArguments(str(checkpoint), str(config), name, verify=False))
        assert there.stat().st_ino == inode and link.is_symlink()
        assert isinstance(AutoModel.from_pretrained(str(there)), FDTModel)
        assert not any(path.name.endswith("unfinished") for path in (*there.iterdir(), *tmp_path.iterdir()))
        for path in there.iterdir():
            path.unlink()


def test_finished_work_is_kept_if_its_place_is_taken_meanwhile(tmp_path):
    with pytest.raises(OSError), command_line.new_folder(tmp_path / "out") as folder:
        (folder / "result").write_text("result", encoding="utf-8")
        (tmp_path / "out").write_text("taken", encoding="utf-8")
    assert (tmp_path / ".out.unfinished" / "result").read_text(encoding="utf-8") == "result"
    (tmp_path / "out").unlink()
    with pytest.raises(ValueError, match="another run writes it"), command_line.new_folder(tmp_path / "out"):
        pass


def test_folder_with_contents_is_left_alone(tmp_path, checkpoint, config):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="`output_dir` must be a new or an empty folder, got '.*out'"):
        convert_fdt_to_hf(ConversionArguments(str(checkpoint), str(config), str(tmp_path / "out")))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("flag", ["--chekpoint", "--check", "--strict"])
def test_unknown_flags_are_errors(flag):
    with pytest.raises(SystemExit) as end:
        command_line.run(convert_fdt_to_hf, ConversionArguments, [flag, "x", "--config", "c", "--output_dir", "o"])
    assert end.value.code not in (0, None)


def test_command_reports_in_one_line_and_fails(tmp_path, config):
    command = [sys.executable, "-m", "conversion.convert_fdt_to_hf", "--checkpoint", "absent.pth.tar"]
    command += ["--config", str(config), "--output_dir", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    # Other packages may have printed before it, as bitsandbytes does on some machines.
    assert result.stderr.splitlines()[-1] == "error: absent.pth.tar: no such file"
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_help_comes_before_heavy_imports():
    code = "import sys; from conversion import convert_fdt_to_hf, convert_hf_to_fdt, init_fdt_from_clip; "
    code += "print({'torch', 'modeling_fdt', 'sklearn', 'datasets'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == ("set()", "")
