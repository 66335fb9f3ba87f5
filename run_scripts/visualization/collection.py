# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""One pass over the data, in memory that does not grow with them; then a gallery, figures and a table are written."""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm

from modeling_fdt import FDTModel, FDTProcessor
from run_scripts.data.files import new_folder
from run_scripts.data.source import copy_credits, open_source
from run_scripts.evaluation.embedding import load_model
from run_scripts.visualization.arguments import VisualizationArguments
from run_scripts.visualization.code_statistics import ModalityStatistics, Sample
from run_scripts.visualization.code_summary import summarize_codes, write_parquet
from run_scripts.visualization.figures import write_figures
from run_scripts.visualization.gallery import GalleryText, write_gallery
from run_scripts.visualization.records import BatchRecords
from run_scripts.visualization.rows import RowReader


logger = logging.getLogger(__name__)

# How many rows stand for the whole data set where words and categories are compared with those of random rows.
SAMPLE_SIZE = 5000


@dataclass
class Collected:
    """What one pass over the data left: statistics of both modalities, and labels of a sample of rows."""

    image: ModalityStatistics
    text: ModalityStatistics
    sample: Sample


@torch.inference_mode()
def collect(
    model: FDTModel, processor: FDTProcessor, dataset: Dataset | IterableDataset, arguments: VisualizationArguments
) -> Collected:
    """Pass once over the data; writes thumbnails into the folder `images` of `output_dir`.

    Rows that cannot be used are left out, named with the reason, and counted.

    Raises:
        ValueError: no row can be used.
    """
    thumbnails = Path(arguments.output_dir) / "images"
    thumbnails.mkdir(parents=True, exist_ok=True)
    codebook_size = model.config.codebook_size
    image = ModalityStatistics(codebook_size, arguments.num_examples)
    text = ModalityStatistics(codebook_size, arguments.num_examples)
    sample = Sample(SAMPLE_SIZE, arguments.seed)
    reader = RowReader(dataset, processor, arguments.category_column)
    num_rows = len(dataset) if isinstance(dataset, Dataset) else arguments.max_rows
    progress = tqdm(total=num_rows, desc="embedding", unit="row")
    for columns in dataset.iter(arguments.batch_size):
        start = reader.num_read
        numbers, rows, inputs = reader.read(columns)
        progress.update(reader.num_read - start)
        if not rows:
            continue
        outputs = model(**inputs.to(model.device), return_loss=False)
        records = BatchRecords(model, processor, rows, numbers, inputs, outputs, arguments.thumbnail_size, thumbnails)
        for row in image.update(outputs.image_code_weights.float().cpu(), numbers, records.image, records.heat_maps):
            (thumbnails / f"{row}.webp").unlink()
        # Equal captions are one: a code shows each only once.
        text_ids = [_caption_id(row["caption"]) for row in rows]
        text.update(outputs.text_code_weights.float().cpu(), text_ids, records.caption, records.marked_words)
        for row in rows:
            sample.add(row["label"])
    progress.close()
    if image.num_items == 0:
        raise ValueError(
            f"split={arguments.split!r} of {arguments.dataset!r} has no row that can be used among {reader.num_read}, "
            f"the last for: {reader.last_reason}"
        )
    if reader.num_left_out:
        logger.warning("%d of %d rows were left out", reader.num_left_out, reader.num_read)
    return Collected(image, text, sample)


def _caption_id(caption: str) -> int:
    """A number below 2^56 that no other caption has, but for a chance of about 1 in 10^5 among a million."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=7).digest(), "big")


def visualize(arguments: VisualizationArguments) -> None:
    """Write gallery, figures and table into `output_dir`, which appears whole or not at all.

    Raises:
        ValueError: the folder is not empty, the model has no codes, or no row can be used.
    """
    with new_folder(arguments.output_dir) as folder:
        write(replace(arguments, output_dir=str(folder)))
        copy_credits(arguments.dataset, folder)
    logger.info("open %s in a browser", Path(arguments.output_dir) / "index.html")


def write(arguments: VisualizationArguments) -> None:
    """Read the data and write the gallery into `output_dir`, which exists."""
    dataset = open_source(arguments, category_column=arguments.category_column)
    if arguments.max_rows is not None:
        dataset = dataset.take(arguments.max_rows)
    model, processor = load_model(arguments.model, arguments.device)
    if not hasattr(model, "codebook"):
        raise ValueError(f"model={arguments.model!r} is a {type(model).__name__}, which has no codes")
    codebook_size = model.config.codebook_size
    wrong = [code for code in arguments.figure_codes or [] if not 0 <= code < codebook_size]
    if wrong:
        raise ValueError(f"figure_codes must be from 0 to {codebook_size - 1}, got {wrong}")

    collected = collect(model, processor, dataset, arguments)
    text = GalleryText(
        model=Path(arguments.model).name, data=f"{Path(arguments.dataset).name}, split {arguments.split}"
    )
    finish(collected, model.codebook.detach().float().cpu(), text, arguments)


def finish(collected: Collected, codebook: torch.Tensor, text: GalleryText, arguments: VisualizationArguments) -> None:
    """What follows the pass over the data: summaries of the codes, web pages, table, figures."""
    output_dir = Path(arguments.output_dir)
    codes = summarize_codes(
        collected.image, collected.text, collected.sample.items, codebook, arguments.num_draws, arguments.seed
    )
    write_parquet(codes, collected.image, collected.text, output_dir / "codes.parquet")
    # Figures first: the gallery removes thumbnails that none of its pages shows.
    write_figures(codes, collected.image, collected.text, arguments.figure_codes, output_dir)
    write_gallery(codes, collected.image, collected.text, text, arguments.max_pages, output_dir)
