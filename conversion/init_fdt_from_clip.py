# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Start an FDT model from a contrastively pretrained checkpoint of transformers: CLIP, MetaCLIP, SigLIP and the like.

    python -m conversion.init_fdt_from_clip --model openai/clip-vit-base-patch32 --output_dir OUT

The towers, the vocabulary and the image statistics are the checkpoint's; groundings and codebook are fresh. A folder
in OpenCLIP's own format (`open_clip_config.json`, `open_clip_model.safetensors`, a tokenizer) is read as well. For two
towers of different origin see `FDTModel.from_vision_text_pretrained`.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .command_line import new_folder, reported_as, run
from .strict_config import LARGEST_INTEGER


if TYPE_CHECKING:
    from modeling_fdt import FDTModel, FDTProcessor

logger = logging.getLogger(__name__)

_CONFIG_FIELDS = (
    *("codebook_size", "codebook_dim", "grounding_activation", "token_pooling", "grounding_temperature"),
    "padding_score",
)


@dataclass
class WarmStartArguments:
    """Arguments of `init_fdt_from_clip`."""

    model: str = field(metadata={"help": "A checkpoint with two towers: a folder or a name on the Hub."})
    output_dir: str = field(metadata={"help": "Where to write; a new or empty folder."})
    codebook_size: int = field(default=16384, metadata={"help": "Number of codes."})
    codebook_dim: int = field(default=512, metadata={"help": "Size of a code and of the embeddings."})
    grounding_activation: Literal["sparsemax", "softmax", "sigmoid"] = field(
        default="sparsemax", metadata={"help": "What turns pooled scores into code weights."}
    )
    token_pooling: Literal["max", "mean", "sum"] = field(
        default="max", metadata={"help": "How the scores of one code at all tokens become one."}
    )
    grounding_temperature: float = field(
        default=1000.0, metadata={"help": "What pooled scores are divided by; goes together with the codebook's size."}
    )
    padding_score: Literal["zero", "ignore"] = field(
        default="ignore", metadata={"help": "Whether padding scores 0, as in the original, or never counts."}
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Start the codebook from token features of this data set: a folder or a name on the Hub."},
    )
    split: str = field(default="train", metadata={"help": "The data set's split."})
    image_column: str = field(default="image", metadata={"help": "The data set's column of images."})
    caption_column: str = field(default="caption", metadata={"help": "The data set's column of captions."})
    num_pairs: int = field(default=4096, metadata={"help": "How many pairs of the data set to use at most."})
    batch_size: int = field(default=64, metadata={"help": "Pairs in one batch of token features."})
    seed: int = field(default=0, metadata={"help": "Seeds groundings, codebook and k-means."})


def _start_codebook(model: "FDTModel", processor: "FDTProcessor", arguments: WarmStartArguments) -> str:
    """Sets the model's codes to k-means centres; tells what they are, for the card."""
    import torch

    from modeling_fdt.kmeans import kmeans_codebook

    from .warm_start import load_pairs, token_queries

    source = arguments.dataset
    columns = (arguments.image_column, arguments.caption_column)
    pairs = load_pairs(source, arguments.split, columns, arguments.num_pairs, arguments.seed)
    with reported_as(f"{source}: its pairs cannot be embedded"):
        queries = torch.cat(list(token_queries(model, processor, pairs, *columns, arguments.batch_size)))
    model.codebook.data.copy_(kmeans_codebook(queries, arguments.codebook_size, arguments.seed))
    return f"k-means centres of {len(queries):,} token queries from {Path(source).name}"


def init_fdt_from_clip(arguments: WarmStartArguments) -> None:
    """
    Loads the towers, builds the FDT model, writes it with its processor and card; `output_dir` appears only if all of
    it succeeds.

    Raises:
        ValueError: the checkpoint, an option or the data set is refused.
        OSError: a file cannot be read or written.
    """
    for name in ("codebook_size", "codebook_dim", "num_pairs", "batch_size"):
        if getattr(arguments, name) <= 0:
            raise ValueError(f"`{name}` must be above 0, got {getattr(arguments, name)}")
    num_values = arguments.codebook_size * arguments.codebook_dim
    if num_values > LARGEST_INTEGER:
        raise ValueError(
            f"`codebook_size` times `codebook_dim` must be at most {LARGEST_INTEGER:,}, got {num_values:,}"
        )
    with new_folder(arguments.output_dir) as folder:
        # Imported here, since torch and transformers take seconds: help and most refusals come at once.
        from transformers import set_seed

        from modeling_fdt import FDTModel
        from modeling_fdt.model_card import write_model_card

        from .model_card import describe_warm_start
        from .warm_start import load_processor, load_towers
        from .weights import check_values

        set_seed(arguments.seed)
        vision_tower, text_tower = load_towers(arguments.model)
        fields = {name: getattr(arguments, name) for name in _CONFIG_FIELDS}
        with reported_as(f"{arguments.model}: no FDT model can be built from it"):
            model = FDTModel.from_vision_text_pretrained(vision_tower, text_tower, **fields)
        processor = load_processor(arguments.model, model)
        codebook_origin = "normally distributed"
        if arguments.dataset is not None:
            codebook_origin = _start_codebook(model, processor, arguments)
        logger.info("codebook: %s", codebook_origin)
        check_values("the model", model.state_dict())
        with reported_as(f"{arguments.output_dir}: cannot be written"):
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        is_local = Path(arguments.model).exists()
        name = Path(arguments.model).name if is_local else arguments.model
        write_model_card(
            folder,
            title=f"FDT, started from {name}",
            base_model=None if is_local else arguments.model,
            origin=describe_warm_start(name, codebook_origin),
        )
    logger.info("wrote %s", arguments.output_dir)


if __name__ == "__main__":
    run(init_fdt_from_clip, WarmStartArguments)
