# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Names as data: which tensor of the original becomes which parameter of the transformers model, both ways.

An original name may hold several parameters (fused query, key and value). What is neither here nor on the list of
dropped names is an error, in both directions.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from .original_config import OriginalConfig, SwinDims, VisionTransformerDims


class Entry(NamedTuple):
    """
    One tensor of the original.

    `layout`: "same"; "split" (stacked along the first axis, one part per parameter); "transpose" (a matrix that the
    original multiplies from the other side); "scalar" (shape (1,) there, () here).
    """

    original: str
    ours: tuple[str, ...]
    layout: str = "same"


# Below, `{p}` stands for both `weight` and `bias`.
_CLIP_BLOCK = (
    Entry("attn.in_proj_{p}", ("self_attn.q_proj.{p}", "self_attn.k_proj.{p}", "self_attn.v_proj.{p}"), "split"),
    Entry("attn.out_proj.{p}", ("self_attn.out_proj.{p}",)),
    Entry("ln_1.{p}", ("layer_norm1.{p}",)),
    Entry("mlp.c_fc.{p}", ("mlp.fc1.{p}",)),
    Entry("mlp.c_proj.{p}", ("mlp.fc2.{p}",)),
    Entry("ln_2.{p}", ("layer_norm2.{p}",)),
)
_CLIP_VISION = (
    Entry("class_embedding", ("embeddings.class_embedding",)),
    Entry("positional_embedding", ("embeddings.position_embedding.weight",)),
    Entry("conv1.weight", ("embeddings.patch_embedding.weight",)),
    Entry("ln_pre.{p}", ("pre_layrnorm.{p}",)),
    Entry("ln_post.{p}", ("post_layernorm.{p}",)),
)
_CLIP_TEXT = (
    Entry("positional_embedding", ("embeddings.position_embedding.weight",)),
    Entry("token_embedding.weight", ("embeddings.token_embedding.weight",)),
    Entry("ln_final.{p}", ("final_layer_norm.{p}",)),
)
_SWIN_BLOCK = (
    Entry("attn.logit_scale", ("attention.self.logit_scale",)),
    Entry("attn.cpb_mlp.0.{p}", ("attention.self.continuous_position_bias_mlp.0.{p}",)),
    Entry("attn.cpb_mlp.2.weight", ("attention.self.continuous_position_bias_mlp.2.weight",)),
    Entry(
        "attn.qkv.weight",
        ("attention.self.query.weight", "attention.self.key.weight", "attention.self.value.weight"),
        "split",
    ),
    Entry("attn.q_bias", ("attention.self.query.bias",)),
    Entry("attn.v_bias", ("attention.self.value.bias",)),
    Entry("attn.proj.{p}", ("attention.output.dense.{p}",)),
    Entry("norm1.{p}", ("layernorm_before.{p}",)),
    Entry("mlp.fc1.{p}", ("intermediate.dense.{p}",)),
    Entry("mlp.fc2.{p}", ("output.dense.{p}",)),
    Entry("norm2.{p}", ("layernorm_after.{p}",)),
)
_SWIN_DOWNSAMPLE = (Entry("reduction.weight", ("reduction.weight",)), Entry("norm.{p}", ("norm.{p}",)))
_SWIN_VISION = (
    Entry("patch_embed.proj.{p}", ("embeddings.patch_embeddings.projection.{p}",)),
    Entry("patch_embed.norm.{p}", ("embeddings.norm.{p}",)),
)
_GROUNDING = tuple(Entry(f"q_map.{i}.{{p}}", (f"query_projection.{i}.{{p}}",)) for i in (0, 1, 3, 4))
_FDT = (Entry("space_dict", ("codebook",)), Entry("logit_scale", ("logit_scale",), "scalar"))
_CLIP_HEADS = (
    Entry("visual.proj", ("visual_projection.weight",), "transpose"),
    Entry("encode_text.text_projection.weight", ("text_projection.weight",)),
    Entry("logit_scale", ("logit_scale",), "scalar"),
)
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Of DECLIP+FDT, what trains beside the model, by the names of `declip.safetensors`, which training writes and reads.
DECLIP_HEADS = (
    *(
        Entry(f"{original}.{kind}", (f"simsiam.{ours}.{kind}",))
        for original, ours, kinds in (
            *((f"projector.linear{n + 1}", f"projector.{3 * n}", ("weight", "bias")) for n in range(3)),
            *((f"projector.bn{n + 1}", f"projector.{3 * n + 1}", _BATCH_NORM) for n in range(3)),
            ("predictor.linear1", "predictor.0", ("weight", "bias")),
            ("predictor.bn1", "predictor.1", _BATCH_NORM),
            ("predictor.layer2", "predictor.3", ("weight", "bias")),
        )
        for kind in kinds
    ),
    Entry("text_label_predictor.weight", ("token_classifier.weight",)),
    Entry("text_label_predictor.bias", ("token_classifier.bias",)),
)
DECLIP_QUEUE = (
    Entry("nn_replacer_text.bank", ("queue.features",), "transpose"),
    Entry("nn_replacer_text.bank_ptr", ("queue.position",), "scalar"),
)
TEXT_PROJECTION_BIAS = "encode_text.text_projection.bias"  # transformers' CLIP has none: `convert_fdt_to_hf` folds it

_CLIP_TOWERS_HEADS = {
    r"visual\.proj": "projection of the CLIP image embedding",
    r"encode_text\.text_projection\.(weight|bias)": "projection of the CLIP text embedding",
}
# Dropped names by model type, as full-match patterns, with what they are. None of them takes part in FDT's outputs.
_DROPPED_FDT = {r"logit_scale_sd": "a second logit scale that the original never reads"}
_DROPPED_SWIN = {
    r"visual\.(norm|head)\.(weight|bias)": "norm and projection of the pooled image embedding",
    r"visual\.layers\.\d+\.blocks\.\d+\.attn\.relative_(coords_table|position_index)": "buffer",
    r"visual\.layers\.\d+\.blocks\.\d+\.attn_mask": "buffer",
}
_DROPPED_DECLIP = {
    # Of these DECLIP_HEADS and DECLIP_QUEUE are kept beside the model.
    r"projector(_text|_nn_text)?\.(linear|bn)[123]\.(weight|bias)": "SimSiam projector, a training head",
    r"predictor(_text|_nn_text)?\.(linear1|bn1|layer2)\.(weight|bias)": "SimSiam predictor, a training head",
    r"(projector|predictor)(_text|_nn_text)?\.bn[123]\.(running_mean|running_var|num_batches_tracked)": (
        "batch statistics of a SimSiam head"
    ),
    r"nn_replacer_(img|text)\.(bank|bank_ptr)": "nearest-neighbour queue, a training state",
    r"text_label_predictor\.(weight|bias)": "masked-language-model head, a training head",
}
DROPPED: dict[str, dict[str, str]] = {
    "clip_fdt_vitb32": {**_DROPPED_FDT, **_CLIP_TOWERS_HEADS},
    "clip_fdt_vitb16": {**_DROPPED_FDT, **_CLIP_TOWERS_HEADS},
    "clip_fdt_swinB_v2": {
        **_DROPPED_FDT,
        **_DROPPED_SWIN,
        r"encode_text\.text_projection\.(weight|bias)": "projection of the CLIP text embedding",
    },
    "declip_fdt_vitb32": {**_DROPPED_DECLIP, **_CLIP_TOWERS_HEADS},
    "clip_vitb32": {},
    "clip_vitb16": {},
}


def _expand(entries: Iterable[Entry], original_prefix: str, our_prefix: str) -> list[Entry]:
    expanded = []
    for entry in entries:
        for kind in ("weight", "bias") if "{p}" in entry.original else ("",):
            ours = tuple(our_prefix + name.replace("{p}", kind) for name in entry.ours)
            expanded.append(Entry(original_prefix + entry.original.replace("{p}", kind), ours, entry.layout))
    return expanded


def clip_tower_entries(num_layers: int, kind: str, original_prefix: str, our_prefix: str) -> list[Entry]:
    """
    The entries of one CLIP tower.

    Args:
        num_layers: number of transformer blocks.
        kind: "vision" or "text".
        original_prefix: what stands before the original's names, e.g. `visual.`.
        our_prefix: what stands before transformers' names, e.g. `vision_tower.`.
    """
    entries = _expand({"vision": _CLIP_VISION, "text": _CLIP_TEXT}[kind], original_prefix, our_prefix)
    for layer in range(num_layers):
        entries += _expand(
            _CLIP_BLOCK, f"{original_prefix}transformer.resblocks.{layer}.", f"{our_prefix}encoder.layers.{layer}."
        )
    return entries


def _swin_entries(dims: SwinDims, our_prefix: str) -> list[Entry]:
    entries = _expand(_SWIN_VISION, "visual.", our_prefix)
    for stage, depth in enumerate(dims.depths):
        original, ours = f"visual.layers.{stage}.", f"{our_prefix}encoder.layers.{stage}."
        for block in range(depth):
            entries += _expand(_SWIN_BLOCK, f"{original}blocks.{block}.", f"{ours}blocks.{block}.")
        if stage + 1 < len(dims.depths):
            entries += _expand(_SWIN_DOWNSAMPLE, f"{original}downsample.", f"{ours}downsample.")
    return entries


def key_map(config: OriginalConfig) -> list[Entry]:
    """Every tensor of the original that the transformers model keeps, for one configuration."""
    vision, text = ("vision_tower.", "text_tower.") if config.codebook else ("vision_model.", "text_model.")
    if isinstance(config.vision, VisionTransformerDims):
        entries = clip_tower_entries(config.vision.layers, "vision", "visual.", vision)
    else:
        entries = _swin_entries(config.vision, vision)
    entries += clip_tower_entries(config.text.layers, "text", "encode_text.", text)
    if config.codebook is None:
        return entries + list(_CLIP_HEADS)
    entries += _expand(_GROUNDING, "img_query_model.", "vision_grounding.")
    entries += _expand(_GROUNDING, "txt_query_model.", "text_grounding.")
    return entries + list(_FDT)


def dropped_names(names: Iterable[str], model_type: str) -> dict[str, str]:
    """The names among `names` that are on the model type's list of dropped names, with what each is."""
    patterns = DROPPED[model_type].items()
    return {name: reason for name in names for pattern, reason in patterns if re.fullmatch(pattern, name)}


def to_ours(tensors: Mapping[str, torch.Tensor], entries: Iterable[Entry]) -> dict[str, torch.Tensor]:
    """
    Renames and splits tensors of the original into parameters of the transformers model.

    Args:
        tensors: the original's names to tensors; all names of `entries` are there.
        entries: see `key_map`.

    Returns:
        `dict[str, torch.Tensor]`: views of the same storage.
    """
    ours = {}
    for entry in entries:
        tensor = tensors[entry.original]
        if entry.layout == "transpose":
            tensor = tensor.T
        elif entry.layout == "scalar":
            tensor = tensor.reshape(())
        ours.update(zip(entry.ours, tensor.chunk(len(entry.ours)) if len(entry.ours) > 1 else (tensor,), strict=True))
    return ours


def to_original(tensors: Mapping[str, torch.Tensor], entries: Iterable[Entry]) -> dict[str, torch.Tensor]:
    """The inverse of `to_ours`; also maps gradients, which have their parameters' shapes."""
    original = {}
    for entry in entries:
        parts = [tensors[name] for name in entry.ours]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        if entry.layout == "transpose":
            tensor = tensor.T
        elif entry.layout == "scalar":
            tensor = tensor.reshape(1)
        original[entry.original] = tensor
    return original


def check_tensors(
    tensors: Mapping[str, torch.Tensor],
    entries: Iterable[Entry],
    our_shapes: Mapping[str, torch.Size],
    dropped: Mapping[str, str],
) -> None:
    """
    Accounts for every name and every shape before anything is converted.

    Args:
        tensors: the checkpoint's tensors.
        entries: see `key_map`.
        our_shapes: the shape of every parameter of the transformers model built from the configuration.
        dropped: see `dropped_names`.

    Raises:
        ValueError: lists the names that are missing, those that nothing maps, and those whose shape contradicts the
            configuration.
    """
    expected = to_original({name: torch.empty(shape, device="meta") for name, shape in our_shapes.items()}, entries)
    missing = sorted(set(expected) - set(tensors))
    unknown = sorted(set(tensors) - set(expected) - set(dropped))
    wrong = [
        f"{name}: {tuple(tensors[name].shape)} in the checkpoint, {tuple(shape.shape)} by the config"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape.shape
    ]
    problems = [
        f"{len(names)} {what}:\n  " + "\n  ".join(names)
        for names, what in (
            (missing, "names missing from the checkpoint"),
            (unknown, "names in the checkpoint that nothing maps"),
            (wrong, "shapes that contradict the config"),
        )
        if names
    ]
    if problems:
        raise ValueError("the checkpoint and the config do not fit together; " + "\n".join(problems))
