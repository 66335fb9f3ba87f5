# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Search by words or by an image, and what is shown of the images found: lines of text, and a sheet."""

import logging
import math
from bisect import bisect
from contextlib import closing
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from run_scripts.data.decoding import ImageError, decode_image, to_rgb
from run_scripts.evaluation.embedding import embed_captions, embed_images, hash_model, load_model
from run_scripts.search.arguments import QDRANT, SearchArguments, read_date
from run_scripts.search.image_index import ImageIndex, check_model, printable
from run_scripts.search.search_index import Filters, Hit, SearchIndex


logger = logging.getLogger(__name__)

CELL, LINE, NUM_COLUMNS = 160, 16, 5  # pixels, pixels, images
NOTHING_FOUND = "(nothing found)"


def open_index(address: str) -> SearchIndex:
    """The index in a folder, or its copy in a Qdrant collection.

    Raises:
        ValueError: there is none, or it cannot be used.
        ImportError: it needs a package that is missing.
    """
    if not address.startswith(QDRANT):
        return ImageIndex(Path(address))
    from run_scripts.search.qdrant_index import QdrantIndex  # an extra

    return QdrantIndex(address)


def read_query_image(path: str) -> Image.Image:
    """The image to search by.

    Raises:
        ValueError: there is no such file, or it is no image.
    """
    try:
        return decode_image(path)
    except ImageError as error:
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
            image = to_rgb(decode_image(path))
        except ImageError:  # the file has gone or changed since it was indexed
            draw.text((left + 4, top + CELL / 2), "(cannot be read now)", fill="firebrick", font=font)
        else:
            factor = (CELL - 8) / max(image.size)
            image = image.resize([max(round(side * factor), 1) for side in image.size], Image.Resampling.BICUBIC)
            corner = (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2)
            sheet.paste(image, corner)
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


def search_images(arguments: SearchArguments) -> None:
    """Search, print what was found and, where asked for, draw it.

    Raises:
        ValueError: the index, the model or the image cannot be used.
    """
    after, before = (read_date(name, getattr(arguments, name)) for name in ("after", "before"))
    filters = Filters(arguments.subfolder, arguments.caption_word, after, before)
    with closing(open_index(arguments.index)) as index:
        name = arguments.model or index.model_name
        model, processor = load_model(name, arguments.device)
        check_model(index.address, index.model_hash, name, hash_model(model, processor))
        if not index.is_current:
            logger.warning("the index has changed since its last complete run; images added since are not searched")
        if arguments.text is not None:
            query = embed_captions(model, processor, [arguments.text])
        else:
            query = embed_images(model, processor, [read_query_image(arguments.image)])
        hits = index.query(query, arguments.by, arguments.top_k, filters)
    print(format_hits(hits))
    if arguments.grid is not None:
        Path(arguments.grid).parent.mkdir(parents=True, exist_ok=True)
        draw_grid(hits).save(arguments.grid)
        print(f"Written to {arguments.grid}")
