# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Search an index of images by words or by an image.

    python -m run_scripts.search_images --index outputs/index --text "a red heart" --grid outputs/hearts.png
    python -m run_scripts.search_images --index outputs/index --image image.png --by codes --top_k 5

`run_scripts.index_images` makes the index.
"""

import logging
import math
from bisect import bisect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont, ImageOps
from transformers import HfArgumentParser

from run_scripts.evaluation.embedding import embed_captions, embed_images, load_model
from run_scripts.search.image_index import (
    Hit,
    ImageIndex,
    check_model,
    decode_picture,
    hash_model,
    printable,
    read_file,
)


logger = logging.getLogger(__name__)

CELL, LINE, NUM_COLUMNS = 160, 16, 5  # pixels, pixels, images
NOTHING_FOUND = "(nothing found)"


@dataclass
class SearchArguments:
    index: str = field(metadata={"help": "Folder that index_images wrote."})
    text: str | None = field(default=None, metadata={"help": "Search by words."})
    image: str | None = field(default=None, metadata={"help": "Search by an image: its path."})
    by: Literal["embeds", "codes"] = field(
        default="embeds", metadata={"help": "Compare embeddings, or code weights through the inverted index."}
    )
    top_k: int = field(default=10, metadata={"help": "Number of images to show."})
    grid: str | None = field(default=None, metadata={"help": "PNG to write the images into."})
    model: str | None = field(
        default=None, metadata={"help": "Where the model that made the index is now, if it was moved."}
    )
    device: str = field(default="cpu", metadata={"help": "Where the model runs."})

    def __post_init__(self):
        if (self.text is None) == (self.image is None):
            raise ValueError(f"give either text or image, got text={self.text!r} and image={self.image!r}")
        if self.grid is not None and not self.grid.lower().endswith(".png"):
            raise ValueError(f"grid must end in .png, got {self.grid!r}")


def read_query_image(path: str) -> Image.Image:
    """The image to search by.

    Raises:
        ValueError: there is no such file, or it is no image.
    """
    try:
        return decode_picture(read_file(Path(path)))
    except (OSError, ValueError) as error:
        raise ValueError(f"image={path!r}: {error}") from error


def draw_grid(hits: list[Hit]) -> Image.Image:
    """The images found, in reading order, each with its score and its caption or file name below."""
    num_rows = max(math.ceil(len(hits) / NUM_COLUMNS), 1)
    height = CELL + 2 * LINE
    sheet = Image.new("RGB", (max(min(len(hits), NUM_COLUMNS), 1) * CELL, num_rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    if not hits:
        draw.text((4, CELL / 2), NOTHING_FOUND, fill="black", font=font)
    for position, hit in enumerate(hits):
        left, top = position % NUM_COLUMNS * CELL, position // NUM_COLUMNS * height
        path, caption = hit.files[0]
        try:
            image = ImageOps.exif_transpose(decode_picture(read_file(path))).convert("RGBA")
        except (OSError, ValueError):  # the file has gone or changed since it was indexed
            draw.text((left + 4, top + CELL / 2), "(cannot be read now)", fill="firebrick", font=font)
        else:
            factor = (CELL - 8) / max(image.size)
            image = image.resize([max(round(side * factor), 1) for side in image.size], Image.Resampling.BICUBIC)
            corner = (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2)
            sheet.paste(image, corner, mask=image)
        label = shorten(printable(" ".join((caption or path.name).split())), CELL - 8, font)
        draw.text((left + 4, top + CELL), f"{hit.score:.3f}", fill="black", font=font)
        draw.text((left + 4, top + CELL + LINE), label, fill="black", font=font)
    return sheet


def shorten(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Text of at most this many pixels, with a sign of omission where it is longer."""
    if len(text) <= width and font.getlength(text) <= width:  # hardly a letter is narrower than a pixel
        return text
    lengths = range(min(len(text), width) + 1)
    return text[: bisect(lengths, width, key=lambda length: font.getlength(text[:length] + "…")) - 1] + "…"


def format_hits(hits: list[Hit]) -> str:
    """One line for each image: place, score, path and caption; a line more for each other file that holds it."""
    lines = []
    for place, hit in enumerate(hits, start=1):
        start = f"{place:4d}  {hit.score:.4f}"
        for path, caption in hit.files:
            lines.append(f"{start}  {printable(str(path))}" + ("" if caption is None else f"  {printable(caption)}"))
            start = " " * len(start)
    return "\n".join(lines) or NOTHING_FOUND


def main(arguments: SearchArguments) -> None:
    index = ImageIndex(Path(arguments.index))
    name = arguments.model or index.model_name
    model, processor = load_model(name, arguments.device)
    check_model(index.folder, index.model_hash, name, hash_model(model, processor))
    if not index.is_current:
        logger.warning("the index has changed since its last complete run; images added since are not searched")
    if arguments.text is not None:
        query = embed_captions(model, processor, [arguments.text])
    else:
        query = embed_images(model, processor, [read_query_image(arguments.image)])
    hits = index.search(query, arguments.by, arguments.top_k)
    print(format_hits(hits))
    if arguments.grid is not None:
        Path(arguments.grid).parent.mkdir(parents=True, exist_ok=True)
        draw_grid(hits).save(arguments.grid)
        print(f"Written to {arguments.grid}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main(*HfArgumentParser(SearchArguments, allow_abbrev=False).parse_args_into_dataclasses())
