# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""One decoder for every entry: the same pixels from the same file, the same refusals, nothing else that escapes."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from PIL import Image

from run_scripts.arguments import DataArguments
from run_scripts.data import decoding
from run_scripts.data.decoding import ImageError, decode_image, decode_rows, read_image_file, to_rgb
from run_scripts.data.pairs import BrokenPair, load_eval_dataset, make_pair
from run_scripts.evaluation.inputs import read_images
from run_scripts.search.indexing import read_image
from run_scripts.search.searching import read_query_image
from run_scripts.visualization.rows import RowReader


# Before gradio is imported: nothing of a test may leave this machine.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
try:
    from run_scripts.visualization import app
except ImportError:  # without the extra [app]
    app = None


RANDOM = np.random.default_rng(0)
RGBA = Image.fromarray(RANDOM.integers(0, 256, (40, 52, 4), dtype=np.uint8))
RGB = RGBA.convert("RGB")
GREY_16 = Image.fromarray(RANDOM.integers(0, 65536, (40, 52), dtype=np.uint16))
OTHER_FRAME = Image.new("RGB", RGB.size, "red")


def turned() -> dict:
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif}


FILES = {
    "plain.png": (RGB, {}),
    "transparent.png": (RGBA, {}),
    "transparent_grey.png": (RGBA.convert("LA"), {}),
    "one_transparent_colour.png": (OTHER_FRAME, {"transparency": (255, 0, 0)}),
    "transparent_palette.png": (RGB.quantize(16), {"transparency": bytes(range(0, 256, 16))}),
    "palette.png": (RGB.convert("P"), {}),
    "bits.png": (RGB.convert("1"), {}),
    "grey_16.png": (GREY_16, {}),
    "grey_16.tiff": (GREY_16, {}),
    "turned.jpg": (RGB, turned()),
    "turned_16.png": (GREY_16, turned()),
    "cmyk.jpg": (RGB.convert("CMYK"), {}),
    "grey.jpg": (RGB.convert("L"), {}),
    "transparent.webp": (RGBA, {"lossless": True}),
    "transparent.avif": (RGBA, {}),
    "animated.gif": (RGB, {"save_all": True, "append_images": [OTHER_FRAME]}),
    "animated.webp": (RGBA, {"save_all": True, "append_images": [OTHER_FRAME]}),
    "animated.png": (RGBA, {"save_all": True, "append_images": [OTHER_FRAME.convert("RGBA")]}),
    "pages.tiff": (RGB, {"save_all": True, "append_images": [OTHER_FRAME]}),
    "cmyk.tiff": (RGB.convert("CMYK"), {}),
    "plain.bmp": (RGB, {}),
    "plain.jp2": (RGB, {}),
    "icon.ico": (RGBA.resize((32, 32)), {}),
    "plain.qoi": (RGBA, {}),
}


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is of a size and holds nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, b"IDAT")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


REFUSED = {
    "bomb.png": (png_header(9_500, 9_500), "has more than 89,478,485 pixels"),
    "large_bomb.png": (png_header(100_000, 100_000), "has more than 89,478,485 pixels"),
    "range.tiff": (encode(Image.new("F", (8, 8)), "TIFF"), "has values without a defined range, of mode 'F'"),
    "whole.tiff": (encode(Image.new("I", (8, 8)), "TIFF"), "has values without a defined range, of mode 'I'"),
    "drawing.eps": (encode(RGB, "EPS"), "is a drawing, not pixels"),
    "text.png": (b"no image", "is not an image of a known format"),
    "empty.png": (b"", "is not an image of a known format"),
    "half.avif": (encode(RGB, "AVIF")[:-200], "cannot be decoded"),
    "half.qoi": (encode(RGB, "QOI")[:-200], "cannot be decoded"),
    "half.dds": (encode(RGB, "DDS")[:60], "cannot be decoded"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The files of both tables by their names."""
    folder = tmp_path_factory.mktemp("images")
    for name, (image, options) in FILES.items():
        image.copy().save(folder / name, **options)
    for name, (content, _) in REFUSED.items():
        (folder / name).write_bytes(content)
    return folder


def save(folder: Path, path: Path) -> str:
    """A data set of `save_to_disk` with one row, its image as bytes."""
    rows = [{"image": {"bytes": path.read_bytes(), "path": None}, "caption": "a"}]
    target = str(folder / "saved")
    DatasetDict({"train": Dataset.from_list(rows).cast_column("image", ImageFeature())}).save_to_disk(target)
    return target


# How each entry makes pixels of one file.


def pixels_of(processor, image: Image.Image) -> torch.Tensor:
    return processor(images=image, return_tensors="pt")["pixel_values"]


def read_in_training(path: Path, folder: Path, processor) -> torch.Tensor:
    try:
        pair = make_pair({"image": path.read_bytes(), "caption": "a"})
    except BrokenPair as broken:
        raise broken.error from broken
    return pixels_of(processor, pair["image"])


def read_in_fine_tuning(path: Path, folder: Path, processor) -> torch.Tensor:
    return pixels_of(processor, decode_rows({"image": [{"bytes": None, "path": str(path)}]})["image"][0])


def read_in_evaluation(path: Path, folder: Path, processor) -> torch.Tensor:
    dataset = Dataset.from_dict({"image": [str(path)]}).cast_column("image", ImageFeature())
    return pixels_of(processor, next(read_images(dataset)))


def read_in_validation(path: Path, folder: Path, processor) -> torch.Tensor:
    arguments = DataArguments(dataset=save(folder, path), validation_split="train")
    return pixels_of(processor, load_eval_dataset(arguments)[0]["image"])


def read_in_gallery(path: Path, folder: Path, processor) -> torch.Tensor:
    dataset = Dataset.from_dict({"image": [{"bytes": None, "path": str(path)}], "caption": ["a"]})
    reader = RowReader(dataset, processor, None)
    _, rows, inputs = reader.read(dataset[:])
    if not rows:
        raise ImageError(reader.last_reason)
    return inputs["pixel_values"]


def read_in_index(path: Path, folder: Path, processor) -> torch.Tensor:
    result = read_image(path, processor, set())
    if isinstance(result, str):
        raise ImageError(result)
    return result.inputs["pixel_values"]


def read_in_search(path: Path, folder: Path, processor) -> torch.Tensor:
    return pixels_of(processor, read_query_image(str(path)))


def read_in_app(path: Path, folder: Path, processor) -> torch.Tensor:
    seen = {}

    def note(images, text, return_tensors):
        seen.update(processor(images=images, return_tensors=return_tensors))
        raise StopIteration

    try:
        app.explain(None, note, str(path), "a", 1)
    except StopIteration:
        return seen["pixel_values"]
    except app.Refusal as error:
        raise ImageError(error.message) from error


ENTRIES = {
    "training": read_in_training,
    "fine_tuning": read_in_fine_tuning,
    "evaluation": read_in_evaluation,
    "validation": read_in_validation,
    "gallery": read_in_gallery,
    "index": read_in_index,
    "search": read_in_search,
    "app": read_in_app,
}


if app is None:
    del ENTRIES["app"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_gives_the_processors_own_pixels(entry, folder, tiny_processor, tmp_path):
    for name in FILES:
        with Image.open(folder / name) as image:
            expected = pixels_of(tiny_processor, image)
        assert torch.equal(ENTRIES[entry](folder / name, tmp_path / name, tiny_processor), expected), name


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_refuses_the_same_files(entry, folder, tiny_processor, tmp_path):
    for name in REFUSED:
        with pytest.raises(ValueError):
            pytest.fail(str(ENTRIES[entry](folder / name, tmp_path / name, tiny_processor)), pytrace=False)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_file_and_the_reason(name, folder):
    with pytest.raises(ImageError) as error:
        decode_image(folder / name)
    assert str(error.value).startswith(f"{folder / name} {REFUSED[name][1]}")


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_refused(name, folder):
    content = (folder / name).read_bytes()
    for share in (0.1, 0.4):  # of two pages the first
        with pytest.raises(ImageError):
            decode_image(content[: int(share * len(content))])


@pytest.mark.parametrize("name", FILES)
def test_thumbnails_and_heat_maps_are_drawn_on_what_the_model_sees(name, folder, tiny_processor):
    image = decode_image(folder / name)
    expected = tiny_processor.image_processor.process_image(Image.open(folder / name), do_convert_rgb=True)
    assert np.array_equal(np.asarray(to_rgb(image)).transpose(2, 0, 1), expected)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path, reason in (
        (tmp_path / "pipe.png", "is not a regular file"),
        (Path("/dev/zero"), "is not a regular file"),
    ):
        with pytest.raises(ImageError, match=reason):
            decode_image({"bytes": None, "path": str(path)})
    with pytest.raises(ImageError, match="missing.png cannot be read"):
        read_image_file(tmp_path / "missing.png")
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(decoding.MAX_BYTES + 1)
    with pytest.raises(ImageError, match="sparse.png is larger than"):
        read_image_file(tmp_path / "sparse.png")


def test_images_by_address(folder):
    assert np.array_equal(decode_image((folder / "plain.png").as_uri()), RGB)
    with pytest.raises(ImageError, match="missing.png cannot be read"):
        decode_image("memory://missing.png")


# Fuzzing

# Every format that Pillow can write as pixels, several ways where they take other paths through its decoder.
WRITERS = {
    "AVIF": [(RGBA, {}), (RGB, turned())],
    "BLP": [(RGB.quantize(16), {})],
    "BMP": [(RGB, {}), (RGB.quantize(16), {})],
    "DDS": [(RGBA, {}), (RGBA.resize((48, 40)), {"pixel_format": "DXT1"})],
    "DIB": [(RGB, {})],
    "EPS": [(RGB, {})],
    "GIF": [(RGB, {}), (RGB, {"save_all": True, "append_images": [OTHER_FRAME]})],
    "ICNS": [(RGB.resize((16, 16)), {})],
    "ICO": [(RGBA.resize((32, 32)), {})],
    "IM": [(RGB, {}), (GREY_16, {})],
    "JPEG": [(RGB, turned()), (RGB, {"progressive": True}), (RGB.convert("CMYK"), {})],
    "JPEG2000": [(RGB, {}), (RGBA, {}), (GREY_16, {})],
    "MPO": [(RGB, {"save_all": True, "append_images": [OTHER_FRAME]})],
    "MSP": [(RGB.convert("1"), {})],
    "PALM": [(RGB.convert("1"), {})],
    "PCX": [(RGB, {}), (RGB.quantize(16), {})],
    "PNG": [
        (RGBA, turned()),
        (RGB.quantize(16), {"transparency": 3}),
        (GREY_16, {}),
        (RGB, {"transparency": (1, 2, 3)}),
    ],
    "PPM": [(RGB, {}), (RGB.convert("1"), {}), (GREY_16, {})],
    "QOI": [(RGB, {}), (RGBA, {})],
    "SGI": [(RGB, {}), (RGBA, {})],
    "SPIDER": [(RGB.convert("F"), {})],
    "TGA": [(RGB, {}), (RGBA, {"compression": "tga_rle"})],
    "TIFF": [(RGB, {}), (RGBA, {"compression": "tiff_lzw"}), (GREY_16, {}), (RGB, {"compression": "jpeg"})],
    "WEBP": [(RGB, {}), (RGBA, {"lossless": True}), (RGB, turned())],
    "XBM": [(RGB.convert("1"), {})],
}


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """A file of which some bytes are changed, most often near its start, cut off, taken out or put in."""
    data = bytearray(content)
    for _ in range(random.integers(1, 5)):
        end = min(len(data), 64) if random.random() < 0.6 else len(data)
        place, length = int(random.integers(max(end, 1))), int(random.integers(1, 9))
        kind = random.integers(6)
        if kind < 3:
            data[place : place + 1] = random.bytes(1)
        elif kind == 3:
            data[place : place + length] = random.choice([b"\x00", b"\xff", b"\x7f"]) * length
        elif kind == 4:
            del data[place : place + length]
        elif random.random() < 0.3:
            del data[int(random.integers(len(data) + 1)) :]
        else:
            data[place:place] = random.bytes(length)
    return bytes(data)


def damaged_files(number: int, seed: int):
    """Damaged images of every format in turn."""
    random = np.random.default_rng(seed)
    files = [
        encode(image.copy(), form, **options) for form, variants in WRITERS.items() for image, options in variants
    ]
    for place in range(number):
        yield damage(files[place % len(files)], random)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_damaged_images_are_read_or_refused(tiny_processor):
    num_read, number = 0, 3000
    for content in damaged_files(number, seed=0):
        try:
            image = decode_image(content)
        except ImageError:
            continue
        assert torch.isfinite(pixels_of(tiny_processor, image)).all()
        assert to_rgb(image).mode == "RGB"
        num_read += 1
    assert 0.2 * number < num_read < 0.8 * number  # neither are all refused nor is the damage of no effect
