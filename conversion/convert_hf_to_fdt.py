"""Convert a transformers folder back into a checkpoint and a configuration that the original implementation reads.

    python -m conversion.convert_hf_to_fdt --model OUT --output_dir ORIGINAL

Tensors that FDT's outputs do not use (see `key_map.DROPPED`) are not in a transformers folder and not written; the
original's loader names them as missing and goes on.
"""

import json
import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml
from transformers import AutoModel, PreTrainedModel

from modeling_fdt import FDTModel

from .command_line import new_folder, run
from .convert_fdt_to_hf import NEUTRAL_PARAMETERS, model_config
from .key_map import TEXT_PROJECTION_BIAS, key_map, to_original
from .original_checkpoint import read_original_checkpoint, write_original_checkpoint
from .original_config import SWIN_BASE, OriginalConfig, SwinDims, parse_original_config
from .verify import verify


logger = logging.getLogger(__name__)

# Fields of configurations that do not change what a trained model computes.
_IRRELEVANT = {
    *("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version", "model_type"),
    *("attention_dropout", "attention_probs_dropout_prob", "drop_path_rate", "hidden_dropout_prob"),
    *("encoder_stride", "initializer_factor", "initializer_range", "logit_scale_init_value"),
    *("freeze_patch_embedding", "id2label", "label2id", "num_labels", "problem_type"),
}


@dataclass
class BackConversionArguments:
    """Arguments of `convert_hf_to_fdt`."""

    model: str = field(metadata={"help": "A transformers folder, or a name on the Hub: an FDTModel or a CLIPModel."})
    output_dir: str = field(
        metadata={
            "help": "Where to write ckpt.pth.tar and config.json (Swin also swin_config.yaml); a new or empty folder."
        }
    )
    last_iter: int = field(default=0, metadata={"help": "The training step to record."})
    verify: bool = field(
        default=True, metadata={"help": "Compare with an independent forward pass of the written tensors."}
    )


def original_config_of(model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The original's configuration of a transformers model.

    Args:
        model: an FDTModel or a CLIPModel.

    Returns:
        What belongs into `config.json`, and Swin's dimensions in the form of the original's file (the original's own
        for other towers).

    Raises:
        ValueError: the model has something that the original cannot express.
    """
    config, vision, text = model.config, model.config.vision_config, model.config.text_config
    is_fdt, is_swin = isinstance(model, FDTModel), vision.model_type == "swinv2"
    if not is_fdt and config.model_type != "clip":
        raise ValueError(f"the original has FDT and CLIP models; got {type(model).__name__}")
    if vision.model_type not in ("clip_vision_model", "swinv2") or text.model_type != "clip_text_model":
        raise ValueError(
            "the original's towers are CLIP's (images: also Swin v2); this model has "
            f"{vision.model_type} and {text.model_type}"
        )
    swin = SWIN_BASE
    embed_dim = config.projection_dim
    if is_swin:
        model_type, image_encode = "clip_fdt_swinB_v2", {"embed_dim": embed_dim}
        swin = {
            "FUSED_LAYERNORM": False,
            "DATA": {"IMG_SIZE": vision.image_size},
            "MODEL": {
                **{"TYPE": "swinv2", "NAME": "swinv2", "NUM_CLASSES": embed_dim, "USE_CHECKPOINT": False},
                **{"DROP_RATE": vision.hidden_dropout_prob, "DROP_PATH_RATE": vision.drop_path_rate},
                "SWINV2": {
                    "EMBED_DIM": vision.embed_dim,
                    "DEPTHS": list(vision.depths),
                    "NUM_HEADS": list(vision.num_heads),
                    "WINDOW_SIZE": vision.window_size,
                    "PATCH_SIZE": vision.patch_size,
                    "MLP_RATIO": vision.mlp_ratio,
                    "QKV_BIAS": vision.qkv_bias,
                    "APE": vision.use_absolute_embeddings,
                    "PATCH_NORM": True,
                    "PRETRAINED_WINDOW_SIZES": list(vision.pretrained_window_sizes),
                },
            },
        }
    else:
        model_type = ("clip_fdt_vitb" if is_fdt else "clip_vitb") + ("32" if vision.patch_size == 32 else "16")
        image_encode = {
            "embed_dim": embed_dim,
            "layers": vision.num_hidden_layers,
            "heads": vision.num_attention_heads,
            "width": vision.hidden_size,
            "patch_size": vision.patch_size,
            "input_resolution": vision.image_size,
        }
    kwargs = {
        "image_encode": image_encode,
        "text_encode": {
            "bpe_path": "text_info/bpe_simple_vocab_16e6.txt.gz",
            "text_encode_type": "Transformer",
            "text_model_utils": {"random": False, "freeze": False},
            "embed_dim": embed_dim,
            "context_length": text.max_position_embeddings,
            "transformer_width": text.hidden_size,
            "transformer_heads": text.num_attention_heads,
            "transformer_layers": text.num_hidden_layers,
        },
    }
    raw: dict[str, Any] = {"model": {"type": model_type, "kwargs": kwargs}}
    if is_fdt:
        kwargs["fdt"] = {
            "sd_temperature": config.grounding_temperature,
            "att_func_type": config.grounding_activation,
            "pool_type": config.token_pooling,
            "use_allgather": True,
            "sd_num": config.codebook_size,
            "sd_dim": config.codebook_dim,
            "raw_img_ft_dim": vision.hidden_size,
            "raw_txt_ft_dim": text.hidden_size,
        }
        # A factor of 1 keeps the temperature where it is at every training step.
        raw["t_decay"] = {
            "org_t": config.grounding_temperature,
            "sd_T_decay_iter": 1,
            "sd_T_decay_w": 1,
            "sd_T_min": 0,
        }
    else:
        kwargs["clip"] = {"use_allgather": True}
    _refuse_what_is_lost(model, parse_original_config(raw, swin))
    return raw, swin


def _refuse_what_is_lost(model: PreTrainedModel, config: OriginalConfig) -> None:
    """What the original would make of its configuration must be the model's own configuration."""
    rebuilt = model_config(config, last_iter=0).to_dict()
    own = model.config.to_dict()
    lost = []
    for section in ("", "vision_config", "text_config"):
        ours, theirs = (whole[section] if section else whole for whole in (own, rebuilt))
        ignored = _IRRELEVANT | ({"vision_config", "text_config"} if not section else {"projection_dim"})
        for name in sorted(set(ours) & set(theirs) - ignored):
            if ours[name] != theirs[name] and not _is_close(ours[name], theirs[name]):
                lost.append(f"{section + '.' if section else ''}{name}: {ours[name]!r} here, {theirs[name]!r} there")
    if lost:
        raise ValueError("the original cannot express this model:\n  " + "\n  ".join(lost))


def _is_close(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return list(a) == list(b)
    return isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-6)


def original_tensors(model: PreTrainedModel, config: OriginalConfig) -> dict[str, torch.Tensor]:
    """
    The parameters of a transformers model by the original's names.

    Args:
        model: an FDTModel or a CLIPModel.
        config: its configuration in the original's terms.

    Raises:
        ValueError: a parameter has no place in the original.
    """
    parameters = model.state_dict()
    entries = key_map(config)
    unmapped = set(parameters) - {name for entry in entries for name in entry.ours}
    for name in sorted(unmapped):
        if name not in NEUTRAL_PARAMETERS or not torch.all(parameters[name] == NEUTRAL_PARAMETERS[name]):
            raise ValueError(f"the original cannot express this model: nothing maps the parameter {name}")
    tensors = to_original(parameters, entries)
    if config.codebook is None:
        # transformers' CLIPModel has no bias here; without it the original would start from a random one.
        tensors[TEXT_PROJECTION_BIAS] = torch.zeros(config.embed_dim)
    return tensors


def convert_hf_to_fdt(arguments: BackConversionArguments) -> None:
    """
    Loads, converts, writes and verifies; `output_dir` appears only if all of it succeeds.

    Raises:
        ValueError: the model cannot be expressed in the original's terms, or verification fails.
    """
    if arguments.last_iter < 0:
        raise ValueError(f"`last_iter` must be at least 0, got {arguments.last_iter}")
    try:
        model = AutoModel.from_pretrained(arguments.model, dtype=torch.float32)
    except OSError as error:
        raise ValueError(f"{arguments.model}: not a transformers model: {error}") from error
    raw, swin = original_config_of(model)
    config = parse_original_config(raw, swin)
    with new_folder(arguments.output_dir) as folder:
        write_original_checkpoint(folder / "ckpt.pth.tar", original_tensors(model, config), arguments.last_iter)
        (folder / "config.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
        if isinstance(config.vision, SwinDims):
            (folder / "swin_config.yaml").write_text(yaml.safe_dump(swin, sort_keys=False), encoding="utf-8")
        if arguments.verify:
            differences = verify(arguments.model, read_original_checkpoint(folder / "ckpt.pth.tar"), config)
            logger.info("verified; largest relative differences: %s", {k: f"{v:.1g}" for k, v in differences.items()})
    logger.info("wrote %s", arguments.output_dir)


if __name__ == "__main__":
    run(convert_hf_to_fdt, BackConversionArguments)
