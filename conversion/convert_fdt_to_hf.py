"""Convert a checkpoint of the original FDT implementation into a transformers folder that computes the same.

    python -m conversion.convert_fdt_to_hf --checkpoint ckpt.pth.tar --config config.json --output_dir OUT

CLIP+FDT and DECLIP+FDT become an FDTModel, the CLIP baseline becomes transformers' CLIPModel.
"""

import hashlib
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedModel, Swinv2Config

from modeling_fdt import FDTConfig, FDTImageProcessor, FDTModel, FDTProcessor, FDTTokenizer
from modeling_fdt.model_card import write_model_card

from .command_line import new_folder, run
from .key_map import TEXT_PROJECTION_BIAS, check_tensors, dropped_names, key_map, to_ours
from .model_card import describe_conversion
from .original_checkpoint import OriginalCheckpoint, read_original_checkpoint
from .original_config import (
    END_TOKEN_ID,
    PADDING_TOKEN_ID,
    START_TOKEN_ID,
    VOCAB_SIZE,
    OriginalConfig,
    VisionTransformerDims,
    read_original_config,
)
from .verify import verify


logger = logging.getLogger(__name__)

LOGIT_SCALE_MAX = math.log(100)  # natural logarithm; the original caps the factor at 100

# Official: Swin's tokens are grounded before the final norm, which transformers' Swinv2Model applies to the tokens it
# returns. With these values it only normalises, and the grounding's own layer norm, which comes next, makes that
# normalisation almost void: a token of variance v is scaled by sqrt((v + e) / (v + e v + e^2)), e = 1e-5.
NEUTRAL_PARAMETERS = {"vision_tower.layernorm.weight": 1.0, "vision_tower.layernorm.bias": 0.0}


@dataclass
class ConversionArguments:
    """Arguments of `convert_fdt_to_hf`."""

    checkpoint: str = field(metadata={"help": "The original checkpoint, ckpt_*.pth.tar."})
    config: str = field(metadata={"help": "The run's configuration, config.json or YAML."})
    output_dir: str = field(metadata={"help": "Where to write; a new or empty folder."})
    swin_config: str | None = field(
        default=None,
        metadata={
            "help": "Swin's dimensions, if they differ from the original's swinv2_base_patch4_window7_224.yaml."
        },
    )
    verify: bool = field(
        default=True, metadata={"help": "Compare with an independent forward pass of the checkpoint's tensors."}
    )


def text_tower_config(config: OriginalConfig) -> CLIPTextConfig:
    """The text tower in transformers' terms."""
    return CLIPTextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=config.text.width,
        intermediate_size=4 * config.text.width,
        num_hidden_layers=config.text.layers,
        num_attention_heads=config.text.heads,
        max_position_embeddings=config.text.context_length,
        projection_dim=config.embed_dim,
        pad_token_id=PADDING_TOKEN_ID,
        bos_token_id=START_TOKEN_ID,
        eos_token_id=END_TOKEN_ID,
    )


def vision_tower_config(config: OriginalConfig) -> CLIPVisionConfig | Swinv2Config:
    """The image tower in transformers' terms."""
    dims = config.vision
    if isinstance(dims, VisionTransformerDims):
        return CLIPVisionConfig(
            hidden_size=dims.width,
            intermediate_size=4 * dims.width,
            num_hidden_layers=dims.layers,
            num_attention_heads=dims.heads,
            image_size=dims.input_resolution,
            patch_size=dims.patch_size,
            projection_dim=config.embed_dim,
        )
    return Swinv2Config(
        image_size=dims.input_resolution,
        patch_size=dims.patch_size,
        embed_dim=dims.embed_dim,
        depths=list(dims.depths),
        num_heads=list(dims.num_heads),
        window_size=dims.window_size,
        mlp_ratio=dims.mlp_ratio,
        pretrained_window_sizes=[0] * len(dims.depths),
    )


def model_config(config: OriginalConfig, last_iter: int) -> FDTConfig | CLIPConfig:
    """
    The whole model in transformers' terms.

    Args:
        config: the run's configuration.
        last_iter: the training step, which sets the grounding temperature.
    """
    towers = {"vision_config": vision_tower_config(config), "text_config": text_tower_config(config)}
    if config.codebook is None:
        return CLIPConfig(**towers, projection_dim=config.embed_dim)
    return FDTConfig(
        **towers,
        codebook_size=config.codebook.num_codes,
        codebook_dim=config.codebook.dim,
        grounding_activation=config.codebook.activation,
        token_pooling=config.codebook.pooling,
        grounding_temperature=config.temperature.at(last_iter),
        padding_score="zero",
        logit_scale_max=LOGIT_SCALE_MAX,
        # Official: the patch embedding's convolution stays at its random start; Swin's is trained.
        freeze_patch_embedding=isinstance(config.vision, VisionTransformerDims),
    )


def fold_text_projection_bias(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Moves the bias of the CLIP baseline's text projection into the layer norm before it.

    transformers' CLIPModel has no such bias. The projection W of the normed tokens plus b is W(x + a) with W a = b, so
    a is added to the layer norm's bias. Computed in float64.

    Args:
        tensors: the checkpoint's tensors.

    Returns:
        The tensors without `encode_text.text_projection.bias`.

    Raises:
        ValueError: no a solves W a = b.
    """
    tensors = dict(tensors)
    bias = tensors.pop(TEXT_PROJECTION_BIAS).double()
    weight = tensors["encode_text.text_projection.weight"].double()
    if weight.shape[0] != bias.shape[0]:
        raise ValueError(f"{TEXT_PROJECTION_BIAS} has {len(bias)} values, its weight has {len(weight)} rows")
    shift = torch.linalg.lstsq(weight, bias[:, None], driver="gelsd").solution[:, 0]
    if not torch.allclose(weight @ shift, bias, rtol=0, atol=1e-6):
        raise ValueError(
            f"{TEXT_PROJECTION_BIAS} cannot be expressed: transformers' CLIPModel has no bias there, and the "
            f"projection {tuple(weight.shape)} does not reach it"
        )
    tensors["encode_text.ln_final.bias"] = (tensors["encode_text.ln_final.bias"].double() + shift).float()
    logger.info("folded %s into encode_text.ln_final.bias", TEXT_PROJECTION_BIAS)
    return tensors


def convert(checkpoint: OriginalCheckpoint, config: OriginalConfig) -> PreTrainedModel:
    """
    Builds the transformers model of a checkpoint.

    Args:
        checkpoint: the original's tensors and training step.
        config: the run's configuration.

    Returns:
        An FDTModel, or a CLIPModel for the CLIP baseline; float32, evaluation mode.

    Raises:
        ValueError: names or shapes of the checkpoint do not fit the configuration.
    """
    hf_config = model_config(config, checkpoint.last_iter)
    model = FDTModel(hf_config) if config.codebook else CLIPModel(hf_config)
    parameters = model.state_dict()
    tensors = checkpoint.tensors
    if config.codebook is None and TEXT_PROJECTION_BIAS in tensors:
        tensors = fold_text_projection_bias(tensors)
    dropped = dropped_names(tensors, config.model_type)
    entries = key_map(config)
    check_tensors(tensors, entries, {name: value.shape for name, value in parameters.items()}, dropped)

    converted = to_ours(tensors, entries)
    if config.codebook is None:  # Official: the factor is capped at 100; CLIPModel has no cap.
        converted["logit_scale"] = converted["logit_scale"].clamp(max=LOGIT_SCALE_MAX)
    for name in NEUTRAL_PARAMETERS.keys() & parameters.keys():
        converted[name] = torch.full_like(parameters[name], NEUTRAL_PARAMETERS[name])
    model.load_state_dict(converted, strict=True)
    kept = [entry.original for entry in entries]
    for action, names in (("kept", kept), ("dropped", dropped)):
        logger.info("%s %d tensors, %s values", action, len(names), f"{sum(tensors[n].numel() for n in names):,}")
    for name, reason in dropped.items():
        logger.info("dropped %s: %s", name, reason)
    return model.eval()


def build_processor(config: OriginalConfig) -> FDTProcessor:
    """The original's evaluation pictures (ImageNet statistics; short side 8/7 of the crop, 256 for 224) and tokens."""
    side = config.vision.input_resolution
    image_processor = FDTImageProcessor(
        size={"shortest_edge": round(side * 256 / 224)}, crop_size={"height": side, "width": side}
    )
    tokenizer = FDTTokenizer(model_max_length=config.text.context_length)
    return FDTProcessor(image_processor=image_processor, tokenizer=tokenizer)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def convert_fdt_to_hf(arguments: ConversionArguments) -> None:
    """
    Reads, converts, writes and verifies; `output_dir` appears only if all of it succeeds.

    Raises:
        ValueError: the input is refused, or verification fails.
    """
    config = read_original_config(arguments.config, arguments.swin_config)
    checkpoint = read_original_checkpoint(arguments.checkpoint)
    with new_folder(arguments.output_dir) as folder:
        model = convert(checkpoint, config)
        model.save_pretrained(folder)
        del model
        build_processor(config).save_pretrained(folder)
        differences = verify(folder, checkpoint, config) if arguments.verify else None
        if differences:
            logger.info("verified; largest relative differences: %s", {k: f"{v:.1g}" for k, v in differences.items()})
        write_model_card(
            folder,
            title=f"{config.model_type}, converted from the original implementation",
            licence="apache-2.0",
            origin=describe_conversion(
                config,
                name=Path(arguments.checkpoint).name,
                sha256=_sha256(arguments.checkpoint),
                last_iter=checkpoint.last_iter,
                differences=differences,
            ),
        )
    logger.info("wrote %s", arguments.output_dir)


if __name__ == "__main__":
    run(convert_fdt_to_hf, ConversionArguments)
