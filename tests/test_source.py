# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The one door for data: every kind of source gives the same rows, and wrong names are told at once."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from PIL import Image

from run_scripts.arguments import PairArguments, SourceArguments
from run_scripts.data.decoding import decode_image
from run_scripts.data.source import open_source


CAPTIONS = ["a red square", "a green square", "a blue square"]
IMAGES = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]


def write_folder(folder: Path) -> str:
    folder.mkdir()
    lines = [json.dumps({"file_name": f"{n}.png", "text": caption}) for n, caption in enumerate(CAPTIONS)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    for number, image in enumerate(IMAGES):
        image.save(folder / f"{number}.png")
    return str(folder)


def encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def make_rows() -> Dataset:
    images = [{"bytes": encode(image), "path": None} for image in IMAGES]
    return Dataset.from_dict({"image": images, "text": CAPTIONS}).cast_column("image", ImageFeature())


def write_parquet(folder: Path) -> str:
    folder.mkdir()
    make_rows().to_parquet(folder / "train.parquet")
    return str(folder)


def write_saved(folder: Path) -> str:
    DatasetDict({"train": make_rows()}).save_to_disk(str(folder))
    return str(folder)


def write_tar(folder: Path) -> str:
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number, (image, caption) in enumerate(zip(IMAGES, CAPTIONS, strict=True)):
            for extension, content in (("png", encode(image)), ("json", json.dumps({"text": caption}).encode())):
                info = tarfile.TarInfo(f"{number}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(folder / "0.tar")


SOURCES = {"folder": write_folder, "parquet": write_parquet, "save_to_disk": write_saved, "tar": write_tar}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def open_rows(source: str, split: str = "train", streaming: bool = False, **names):
    arguments = PairArguments(dataset=source, split=split, **{"caption_column": "text", **names})
    arguments.streaming = streaming
    return open_source(arguments)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_rows(kind, streaming, tmp_path):
    dataset = open_rows(SOURCES[kind](tmp_path / kind), streaming=streaming)
    rows = list(dataset)
    assert [row["caption"] for row in rows] == CAPTIONS
    assert all({"image", "caption"} == set(row) for row in rows)
    for row, image in zip(rows, IMAGES, strict=True):
        assert set(row["image"]) == {"bytes", "path"}  # undecoded
        assert np.array_equal(decode_image(row["image"]), image)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    "names, message",
    [
        ({"caption_column": "words"}, "caption_column='words' is no column of the data set; it has"),
        ({"split": "test"}, "split"),
        ({"caption_column": "image"}, "image_column and caption_column must differ, got 'image' for both"),
    ],
)
def test_wrong_names_are_told_with_what_there_is(kind, names, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_rows(SOURCES[kind](tmp_path / kind), **names)


def test_only_columns_that_have_a_flag_are_to_be_given(tmp_path):
    arguments = PairArguments(dataset=write_saved(tmp_path / "saved"), split="train", caption_column="text")
    for argument, end in (("label_column", "; give --label_column$"), ("concepts", r"\]$")):
        with pytest.raises(ValueError, match=f"{argument}='none' is no column of the data set; it has .*{end}"):
            open_source(arguments, **{argument: "none"})


def test_columns_of_the_two_names_that_are_not_meant_make_room(tmp_path):
    rows = make_rows().rename_columns({"image": "photo"}).add_column("image", [1, 2, 3])
    rows = rows.add_column("caption", ["x", "y", "z"]).add_column("label", [0, 1, 0])
    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    arguments = PairArguments(
        dataset=str(tmp_path / "saved"), split="train", image_column="photo", caption_column="text"
    )
    dataset = open_source(arguments, label_column="label", kind_column=None)
    assert dataset["caption"][:] == CAPTIONS and dataset["label"][:] == [0, 1, 0]
    assert set(dataset.column_names) == {"image", "caption", "label"}
    for label_column in ("caption", "text"):
        with pytest.raises(ValueError, match=f"label_column='{label_column}' must be another column than"):
            open_source(arguments, label_column=label_column)
    without_captions = SourceArguments(dataset=arguments.dataset, split="train", image_column="photo")
    assert open_source(without_captions, label_column="caption")["caption"][:] == ["x", "y", "z"]
    with pytest.raises(ValueError, match="image_column='text' must hold|image_column='label' must hold"):
        open_source(SourceArguments(dataset=arguments.dataset, split="train", image_column="label"))


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_damaged_source_is_refused(kind, tmp_path):
    source = SOURCES[kind](tmp_path / kind)
    (file,) = (tmp_path / kind).iterdir()
    file.write_bytes(file.read_bytes()[:1600])
    with pytest.raises((ValueError, OSError)):
        open_rows(source)


def test_nothing_is_left_in_a_folder_of_save_to_disk(tmp_path):
    source = write_saved(tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    part = open_rows(source).train_test_split(2, seed=0)["test"]
    assert len(part.add_column("number", [0, 1])) == 2 and len(part.select([1])) == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


def test_tar_shards_that_have_changed_are_read_anew(tmp_path):
    source = write_tar(tmp_path / "tar")
    assert len(open_rows(source)) == 3
    (tmp_path / "tar" / "0.tar").unlink()
    (tmp_path / "tar").rmdir()
    CAPTIONS.append("one more"), IMAGES.append(IMAGES[0])
    try:
        assert len(open_rows(write_tar(tmp_path / "tar"))) == 4
    finally:
        CAPTIONS.pop(), IMAGES.pop()
