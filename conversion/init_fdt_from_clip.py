"""Start an FDT model from a contrastively pretrained checkpoint of transformers: CLIP, MetaCLIP, SigLIP and the like.

    python -m conversion.init_fdt_from_clip --clip openai/clip-vit-base-patch32 --output_dir OUT

The towers, the vocabulary and the image statistics are the checkpoint's; groundings and codebook are fresh. A folder
in OpenCLIP's own format (`open_clip_config.json`, `open_clip_model.safetensors`, a tokenizer) is read as well. For two
towers of different origin see `FDTModel.from_vision_text_pretrained`.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from datasets import Dataset, load_dataset, load_from_disk
from sklearn.cluster import MiniBatchKMeans
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel, set_seed

from modeling_fdt import FDTModel, FDTProcessor
from modeling_fdt.model_card import write_model_card

from .command_line import new_folder, run
from .model_card import describe_warm_start
from .open_clip import is_open_clip, load_open_clip_towers, open_clip_image_processor


logger = logging.getLogger(__name__)

# SigLIP 2 at a fixed resolution is of type "siglip"; with pictures of any shape ("siglip2") its inputs differ.
TWO_TOWER_TYPES = ("clip", "metaclip_2", "siglip")


@dataclass
class WarmStartArguments:
    """Arguments of `init_fdt_from_clip`."""

    clip: str = field(metadata={"help": "A checkpoint with two towers: a folder or a name on the Hub."})
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
    kmeans_dataset: str | None = field(
        default=None,
        metadata={"help": "Start the codebook from token features of this data set: a folder or a name on the Hub."},
    )
    kmeans_split: str = field(default="train", metadata={"help": "The data set's split."})
    image_column: str = field(default="image", metadata={"help": "The data set's column of pictures."})
    caption_column: str = field(default="caption", metadata={"help": "The data set's column of captions."})
    kmeans_pairs: int = field(default=4096, metadata={"help": "How many pairs of the data set to use at most."})
    batch_size: int = field(default=64, metadata={"help": "Pairs in one batch of token features."})
    seed: int = field(default=0, metadata={"help": "Seeds groundings, codebook and k-means."})


def load_towers(name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """
    The image tower and the text tower of a checkpoint.

    Args:
        name: a folder or a name on the Hub.

    Raises:
        ValueError: it is no checkpoint of transformers, of another type, or lacks weights.
    """
    if is_open_clip(name):
        return load_open_clip_towers(name)
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise ValueError(f"{name}: not a checkpoint of transformers: {error}") from error
    if config.model_type not in TWO_TOWER_TYPES:
        raise ValueError(
            f"{name}: expected a model with two towers, of type {', '.join(TWO_TOWER_TYPES)}, got {config.model_type}"
        )
    model, report = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    missing = sorted(key for key in report["missing_keys"] if key.startswith(("vision_model.", "text_model.")))
    if missing:
        raise ValueError(f"{name}: weights are missing: {missing}")
    return model.vision_model, model.text_model


def build_processor(name: str, max_length: int) -> FDTProcessor:
    """
    The checkpoint's own image processor and tokenizer as an FDTProcessor.

    Args:
        name: a folder or a name on the Hub.
        max_length: the text tower's longest input, in tokens; longer captions are cut to it.
    """
    is_own_format = is_open_clip(name)
    image_processor = open_clip_image_processor(name) if is_own_format else AutoImageProcessor.from_pretrained(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: no tokenizer that transformers reads: {error}") from error
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_length)
    # Some, as SigLIP's, name no mask by default; without it padding would count as tokens.
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return FDTProcessor(image_processor=image_processor, tokenizer=tokenizer)


def _load_pairs(arguments: WarmStartArguments) -> Dataset:
    """At most `kmeans_pairs` random pairs of the data set."""
    path = Path(arguments.kmeans_dataset)
    is_saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    try:
        dataset = load_from_disk(str(path)) if is_saved else load_dataset(arguments.kmeans_dataset)
    except FileNotFoundError as error:
        raise ValueError(f"{arguments.kmeans_dataset}: no such data set: {error}") from error
    if not isinstance(dataset, Dataset):
        if arguments.kmeans_split not in dataset:
            raise ValueError(f"`kmeans_split` must be one of {sorted(dataset)}, got {arguments.kmeans_split!r}")
        dataset = dataset[arguments.kmeans_split]
    for column in (arguments.image_column, arguments.caption_column):
        if column not in dataset.column_names:
            raise ValueError(f"the data set has no column {column!r}; its columns are {dataset.column_names}")
    chosen = np.random.default_rng(arguments.seed).permutation(len(dataset))[: arguments.kmeans_pairs]
    return dataset.select(chosen, keep_in_memory=True)  # else a cache file appears in the data set's folder


@torch.no_grad()
def token_queries(
    model: FDTModel, processor: FDTProcessor, pairs: Dataset, image_column: str, caption_column: str, batch_size: int
) -> Iterator[torch.Tensor]:
    """
    Projected features of patches and words, batch by batch.

    Yields:
        (tokens, codebook_dim); padding left out.
    """
    queries: dict[str, torch.Tensor] = {}
    hooks = [
        getattr(model, half).query_projection.register_forward_hook(
            lambda module, inputs, output, half=half: queries.update({half: output})
        )
        for half in ("vision_grounding", "text_grounding")
    ]
    try:
        for batch in pairs.iter(batch_size):
            inputs = processor(images=batch[image_column], text=batch[caption_column], return_tensors="pt")
            model(**inputs, return_loss=False)
            yield queries["vision_grounding"].flatten(0, 1)
            yield queries["text_grounding"][inputs["attention_mask"].bool()]
    finally:
        for hook in hooks:
            hook.remove()


def kmeans_codebook(queries: torch.Tensor, codebook_size: int, seed: int) -> torch.Tensor:
    """
    Codes at the centres of clusters of token queries.

    Args:
        queries (`torch.Tensor` of shape `(tokens, codebook_dim)`): projected token features.
        codebook_size: number of codes; at most the number of tokens.
        seed: of k-means.

    Returns:
        `torch.Tensor` of shape `(codebook_size, codebook_dim)`: the centres, shifted and scaled as a whole to mean 0
        and variance 1, which N(0, 1) codes have, so that the temperature keeps its meaning.

    Raises:
        ValueError: there are fewer tokens than codes.
    """
    if len(queries) < codebook_size:
        raise ValueError(
            f"k-means needs at least as many tokens as codes, got {len(queries)} tokens for {codebook_size} codes; "
            "use more pairs (`kmeans_pairs`) or fewer codes (`codebook_size`)"
        )
    batch_size = max(1024, codebook_size)
    kmeans = MiniBatchKMeans(codebook_size, random_state=seed, batch_size=batch_size, n_init=1).fit(queries.numpy())
    centres = torch.from_numpy(kmeans.cluster_centers_).float()
    return (centres - centres.mean(0)) / (centres - centres.mean(0)).std()


def init_fdt_from_clip(arguments: WarmStartArguments) -> None:
    """
    Loads the towers, builds the FDT model, writes it with its processor and card; `output_dir` appears only if all of
    it succeeds.

    Raises:
        ValueError: the checkpoint, an option or the data set is refused.
    """
    set_seed(arguments.seed)
    for name in ("kmeans_pairs", "batch_size"):
        if getattr(arguments, name) <= 0:
            raise ValueError(f"`{name}` must be above 0, got {getattr(arguments, name)}")
    fields = ("codebook_size", "codebook_dim", "grounding_activation", "token_pooling")
    fields += ("grounding_temperature", "padding_score")
    with new_folder(arguments.output_dir) as folder:
        vision_tower, text_tower = load_towers(arguments.clip)
        model = FDTModel.from_vision_text_pretrained(
            vision_tower, text_tower, **{name: getattr(arguments, name) for name in fields}
        )
        processor = build_processor(arguments.clip, text_tower.config.max_position_embeddings)
        codebook_origin = "normally distributed"
        if arguments.kmeans_dataset is not None:
            pairs = _load_pairs(arguments)
            columns = (arguments.image_column, arguments.caption_column)
            queries = torch.cat(list(token_queries(model, processor, pairs, *columns, arguments.batch_size)))
            model.codebook.data.copy_(kmeans_codebook(queries, arguments.codebook_size, arguments.seed))
            source = Path(arguments.kmeans_dataset).name
            codebook_origin = f"k-means centres of {len(queries):,} token queries from {source}"
        logger.info("codebook: %s", codebook_origin)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        is_local = Path(arguments.clip).exists()
        name = Path(arguments.clip).name if is_local else arguments.clip
        write_model_card(
            folder,
            title=f"FDT, started from {name}",
            base_model=None if is_local else arguments.clip,
            origin=describe_warm_start(name, codebook_origin),
        )
    logger.info("wrote %s", arguments.output_dir)


if __name__ == "__main__":
    run(init_fdt_from_clip, WarmStartArguments)
