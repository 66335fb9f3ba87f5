# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of indexing and search; light, so that help and refusals come at once."""

from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from run_scripts.arguments import CheckpointArguments, check_output_file


QDRANT = "qdrant+"


def split_address(address: str) -> tuple[str, str]:
    """What a Qdrant client opens, a URL or a folder, and the collection in it, from `qdrant+URL/COLLECTION`.

    Raises:
        ValueError: the address is none of a collection.
    """
    parts = urlsplit(address.removeprefix(QDRANT))
    location, _, collection = parts.path.rpartition("/")
    is_server = parts.scheme in ("http", "https") and parts.netloc and not location
    is_folder = parts.scheme == "file" and not parts.netloc and location
    if not (address.startswith(QDRANT) and collection and (is_server or is_folder)):
        raise ValueError(
            "a Qdrant collection must be given as qdrant+http://HOST:6333/COLLECTION, with https, or as "
            f"qdrant+file:///FOLDER/COLLECTION, got {address!r}"
        )
    return (f"{parts.scheme}://{parts.netloc}" if is_server else location), collection


def read_date(name: str, text: str | None) -> date | None:
    """The day that an argument names.

    Raises:
        ValueError: it names none.
    """
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{name} must be a date such as 2026-05-01, got {text!r}") from error


@dataclass(kw_only=True)
class IndexArguments(CheckpointArguments):
    """What is indexed, and where."""

    images: str = field(metadata={"help": "Folder of images, searched with all its subfolders."})
    index: str = field(metadata={"help": "Folder of the index: a new one, or one made by this model before."})
    caption_column: str = field(
        default="caption", metadata={"help": "Column of captions in metadata.csv or metadata.jsonl, if there is one."}
    )
    dense_index: Literal["flat", "hnsw"] = field(
        default="flat",
        metadata={"help": "FAISS index of the embeddings: flat is exact, hnsw is faster from about 10^6."},
    )
    copy_to: str | None = field(
        default=None,
        metadata={"help": "Qdrant collection that becomes a copy of the index: qdrant+http://host:6333/collection."},
    )
    codes_per_image: int | None = field(
        default=None, metadata={"help": "Search by the k largest codes of each image; by all if not given."}
    )
    batch_size: int = field(default=64, metadata={"help": "Files that are read, embedded and committed together."})

    def __post_init__(self):
        for name in ("batch_size", "codes_per_image"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not Path(self.images).is_dir():
            raise ValueError(f"images={self.images!r} is no folder")
        if self.index.startswith(QDRANT):
            raise ValueError(
                f"index must be a folder, which keeps what a collection is a copy of, got {self.index!r}; give the "
                "collection as copy_to"
            )
        if self.copy_to is not None:
            split_address(self.copy_to)


@dataclass(kw_only=True)
class EmbedArguments(CheckpointArguments):
    """Images to embed, and where the results go."""

    images: str = field(
        metadata={
            "help": "Folder or address (s3://...) that holds images, tar shards or parquet files, or one of these."
        }
    )
    output_dir: str = field(metadata={"help": "Folder or address of the Parquet files: new, or of an earlier run."})
    image_column: str = field(default="image", metadata={"help": "Column of images in parquet files."})
    batch_size: int = field(default=64, metadata={"help": "Images that are embedded together."})
    num_workers: int | None = field(
        default=None,
        metadata={"help": "Copies of the model; default: one for each GPU, without any for each CPU core."},
    )
    embeds_dtype: Literal["float32", "float16"] = field(
        default="float32", metadata={"help": "Type of the embeddings on disk."}
    )
    retry_failed: bool = field(
        default=False, metadata={"help": "Read files again of which earlier runs could not embed anything."}
    )

    def __post_init__(self):
        for name in ("batch_size", "num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(kw_only=True)
class SearchArguments(CheckpointArguments):
    """What is searched for, and where."""

    index: str = field(
        metadata={"help": "Folder that index_images wrote, or its copy: qdrant+http://host:6333/collection."}
    )
    text: str | None = field(default=None, metadata={"help": "Search by words."})
    image: str | None = field(default=None, metadata={"help": "Search by an image: its path."})
    by: Literal["embeds", "codes"] = field(
        default="embeds", metadata={"help": "Compare embeddings, or code weights through the inverted index."}
    )
    top_k: int = field(default=10, metadata={"help": "Number of images to show."})
    subfolder: str | None = field(
        default=None, metadata={"help": "Only images in this subfolder of the indexed one, and below it."}
    )
    caption_word: str | None = field(
        default=None, metadata={"help": "Only images whose caption has this word, or all of these."}
    )
    after: str | None = field(
        default=None, metadata={"help": "Only images whose file was changed on this day (2026-05-01, UTC) or later."}
    )
    before: str | None = field(
        default=None, metadata={"help": "Only images whose file was last changed before this day (UTC)."}
    )
    grid: str | None = field(default=None, metadata={"help": "PNG to write the images into."})
    model: str | None = field(
        default=None, metadata={"help": "Where the model that made the index is now, if it was moved."}
    )

    def __post_init__(self):
        if (self.text is None) == (self.image is None):
            raise ValueError(f"give either text or image, got text={self.text!r} and image={self.image!r}")
        if self.grid is not None and not self.grid.lower().endswith(".png"):
            raise ValueError(f"grid must end in .png, got {self.grid!r}")
        if self.grid is not None:
            check_output_file("grid", self.grid)
        if self.index.startswith(QDRANT):
            split_address(self.index)
        after, before = (read_date(name, getattr(self, name)) for name in ("after", "before"))
        if after is not None and before is not None and after >= before:
            raise ValueError(f"after must be earlier than before, got {self.after} and {self.before}")
