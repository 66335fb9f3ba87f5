"""FDTImageProcessor and FDTProcessor: exact geometry, every kind of picture, bad input, round trips."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

from modeling_fdt import FDTImageProcessor, FDTProcessor, FDTTokenizer, image_processing_fdt
from tests.conftest import needs_auto_image_processor


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def evaluate_as_torchvision(image: Image.Image) -> np.ndarray:
    """Resize(256), CenterCrop(224), ToTensor, Normalize by torchvision's documented arithmetic on PIL images."""
    width, height = image.size
    if width <= height:
        new_width, new_height = 256, int(256 * height / width)
    else:
        new_width, new_height = int(256 * width / height), 256
    image = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
    left, top = int(round((new_width - 224) / 2.0)), int(round((new_height - 224) / 2.0))
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float64) / 255
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)


# Sizes whose resized long side leaves every remainder after the crop, 3 modulo 4 (where rounding differs) among them.
@pytest.mark.parametrize("height", [256, 300, 333, 224, 37, 512])
@pytest.mark.parametrize("width", [256, 257, 258, 259, 260, 261, 262, 263, 301, 640, 40])
def test_geometry_is_torchvisions(height, width):
    image = Image.fromarray(noise(height, width))
    ours = FDTImageProcessor()(image, return_tensors="np").pixel_values[0]
    # float32 against float64 arithmetic on values up to about 3.
    np.testing.assert_allclose(ours, evaluate_as_torchvision(image), atol=2e-6)


def test_smaller_pictures_are_padded_as_torchvision_pads_them():
    processor = FDTImageProcessor(do_resize=False, do_normalize=False, do_rescale=False)
    pixels = noise(221, 300)
    result = processor(Image.fromarray(pixels), return_tensors="np").pixel_values[0]
    expected = np.zeros((3, 224, 224))
    expected[:, 1:222] = pixels.transpose(2, 0, 1)[:, :, 38:262]  # 3 rows are missing: 1 above, 2 below
    np.testing.assert_array_equal(result, expected)


def run(image, **kwargs) -> np.ndarray:
    processor = FDTImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)
    return processor(image, return_tensors="np", **kwargs).pixel_values[0]


def test_every_kind_of_picture_becomes_rgb():
    rgb = Image.fromarray(noise(8, 9))
    grey = rgb.convert("L")
    np.testing.assert_array_equal(run(grey), np.stack([np.asarray(grey)] * 3))
    palette = rgb.quantize(16)
    np.testing.assert_array_equal(run(palette), np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    cmyk = rgb.convert("CMYK")
    np.testing.assert_array_equal(run(cmyk), np.asarray(cmyk.convert("RGB")).transpose(2, 0, 1))
    transparent = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert (run(transparent) == 255).all()
    assert run(rgb.convert("1")).shape == (3, 9 - 1, 9)


def test_sixteen_bit_grey_is_scaled_to_eight():
    values = np.array([[0, 257, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(run(Image.fromarray(values))[0], [[0, 1, 255]])
    with pytest.raises(ValueError, match="mode 'I'"):
        run(Image.fromarray(np.array([[200]], dtype=np.int32)))
    with pytest.raises(ValueError, match="mode 'F'"):
        run(Image.fromarray(np.array([[0.5]], dtype=np.float32)))


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.fromarray(noise(16, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    expected = np.rot90(np.asarray(picture), k=-1).transpose(2, 0, 1)
    np.testing.assert_array_equal(run(Image.open(tmp_path / "turned.png")), expected)


def test_arrays_and_tensors_equal_pictures():
    pixels = noise(40, 50)
    expected = FDTImageProcessor()(Image.fromarray(pixels), return_tensors="np").pixel_values
    for same in (pixels, pixels.transpose(2, 0, 1), torch.from_numpy(pixels)):
        np.testing.assert_array_equal(FDTImageProcessor()(same, return_tensors="np").pixel_values, expected)


def test_a_truncated_file_is_named(tmp_path):
    Image.fromarray(noise(64, 64)).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"half\.jpg cannot be decoded"):
        FDTImageProcessor()(Image.open(tmp_path / "half.jpg"))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (noise(8, 8, 2), "channel"),
        (noise(8, 8, 5), "channel"),
        (np.full((8, 8, 3), np.nan, dtype=np.float32), "not finite"),
        (np.full((8, 8, 3), np.inf, dtype=np.float32), "not finite"),
    ],
)
def test_bad_arrays_are_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        FDTImageProcessor()(pixels)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="crop"):
        FDTImageProcessor(corp_size=224)
    with pytest.raises(TypeError, match="corp_size"):
        FDTImageProcessor()(Image.new("RGB", (8, 8)), corp_size=224)


@pytest.mark.parametrize("load", [FDTImageProcessor.from_pretrained, FDTProcessor.from_pretrained])
def test_a_file_of_another_release_may_have_further_options(load, tiny_processor, tmp_path):
    tiny_processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    content = json.loads(file.read_text())
    content["image_processor"]["option_of_the_future"] = 1
    file.write_text(json.dumps(content))
    reloaded = load(tmp_path)
    image_processor = getattr(reloaded, "image_processor", reloaded)
    assert image_processor.crop_size["height"] == 32 and image_processor.to_dict()["option_of_the_future"] == 1


@pytest.mark.parametrize("shape", [(3, 401), (701, 5), (300, 10_011)])
@pytest.mark.parametrize("resample", Image.Resampling)
def test_the_seen_part_of_a_long_image_is_that_of_the_whole(shape, resample, monkeypatch):
    image = Image.fromarray(noise(*shape))
    processor = FDTImageProcessor(resample=resample, do_normalize=False, do_rescale=False)
    expected = processor(image, return_tensors="np").pixel_values.astype(int)
    monkeypatch.setattr(image_processing_fdt, "_LONGEST_RESIZED_SIDE", 4096)
    difference = np.abs(expected - processor(image, return_tensors="np").pixel_values)
    # PIL takes the part's edges in float32: here and there a value is rounded to the other side.
    assert difference.max() <= 1 and (difference > 0).mean() < 5e-3


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1)])
def test_of_a_very_long_image_only_the_seen_part_is_resized(shape, monkeypatch):
    sides = []
    resize = Image.Image.resize

    def record(self, size, *args, **kwargs):
        sides.extend(size)
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", record)
    pixels = np.zeros((*shape, 3), dtype=np.uint8)
    pixels.reshape(-1, 3)[2000:] = 255
    result = FDTImageProcessor(do_normalize=False)(Image.fromarray(pixels), return_tensors="np").pixel_values[0, 0]
    assert sides and max(sides) == 256
    profile = result[0] if shape[0] == 1 else result[:, 0]
    np.testing.assert_allclose(profile, (np.arange(224) + 16.5) / 256, atol=1 / 255)  # from the one to the other


def test_options_of_other_image_processors_are_taken(tokenizer):
    image_processor = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    processor = FDTProcessor(image_processor, tokenizer)
    image = Image.fromarray(noise(40, 50))
    result = processor(images=image, crop_pct=0.5, return_tensors="np").pixel_values
    np.testing.assert_array_equal(result, image_processor(image, crop_pct=0.5, return_tensors="np").pixel_values)
    with pytest.raises(ValueError, match="no option .*crop_ptc"):
        processor(images=image, crop_ptc=0.5)


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({}, 8),
        ({"text_kwargs": {"padding": True}}, 8),
        ({"padding": "max_length"}, 77),
        ({"padding": "max_length", "max_length": 20}, 20),
        ({"truncation": False}, 8),
        ({"padding": False}, None),
    ],
)
def test_padding_to_a_multiple(options, width, tiny_processor):
    plain = tiny_processor(text=["a cat", "a cat sleeps"], padding=False)["input_ids"]
    result = tiny_processor(text=["a cat", "a cat sleeps"], pad_to_multiple_of=8, **options)
    assert [sum(mask) for mask in result["attention_mask"]] == [4, 5]
    assert [ids[: len(row)] for ids, row in zip(result["input_ids"], plain, strict=True)] == plain
    assert [len(ids) for ids in result["input_ids"]] == ([4, 5] if width is None else [width] * 2)


def test_padding_to_a_multiple_stays_within_the_context(tiny_processor):
    ids = tiny_processor(text=["cat " * 100, "a"], pad_to_multiple_of=8, return_tensors="pt")["input_ids"]
    assert ids.shape == (2, 77) and ids[0, -1] == 49408


def test_processor_output(tiny_processor, images, captions):
    batch = tiny_processor(images=images, text=captions, return_tensors="pt")
    assert sorted(batch) == ["attention_mask", "input_ids", "pixel_values"]
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 12)  # padded to the longest
    assert list(tiny_processor(images=images[0])) == ["pixel_values"]
    assert tiny_processor(text=["cat " * 100])["input_ids"][0][-1] == 49408  # cut to 77 tokens
    assert tiny_processor(text="cat", padding="max_length", return_tensors="pt")["input_ids"].shape == (1, 77)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "got neither"),
        ({"text": []}, "at least one string"),
        ({"text": [1]}, "every caption must be a string, got .*int"),
        ({"text": 3}, "`text` must be a string"),
        ({"images": []}, "empty list"),
        ({"text": "cat", "paddin": True}, "no option .*paddin"),
        ({"text": "cat", "text_kwargs": {"paddin": True}}, "no option .*paddin.* in `text_kwargs`"),
        ({"text": "cat", "text_kwargs": {"do_resize": True}}, "no option .*do_resize.* in `text_kwargs`"),
        ({"text": "cat", "images_kwargs": {"do_resiz": True}}, "no option .*do_resiz.* in `images_kwargs`"),
        (
            {"text": ["a", ""], "add_special_tokens": False},
            "every caption must have a token, got none of caption 1",
        ),
    ],
)
def test_bad_input_is_refused(tiny_processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor(**arguments)


def test_the_mask_is_always_asked_for(tokenizer, tmp_path):
    without_mask = copy.deepcopy(tokenizer)
    without_mask.model_input_names = ["input_ids"]
    processor = FDTProcessor(FDTImageProcessor(), without_mask)
    assert "attention_mask" in processor(text=["a", "a b"])
    processor.save_pretrained(tmp_path)
    # transformers' pipelines call the tokenizer by itself.
    for each in (processor, FDTProcessor.from_pretrained(tmp_path)):
        assert each.tokenizer(["a", "a b"], padding=True)["attention_mask"] == [[1, 1, 1, 0], [1] * 4]
    with pytest.raises(ValueError, match="`return_attention_mask` must be True, got False"):
        processor(text=["a", "a b"], return_attention_mask=False)
    with pytest.raises(ValueError, match="`return_attention_mask` must be True, got False"):
        processor(text=["a", "a b"], text_kwargs={"return_attention_mask": False})


def test_round_trip(tiny_processor, tmp_path, images, captions):
    tiny_processor.save_pretrained(tmp_path)
    expected = tiny_processor(images=images, text=captions, return_tensors="pt")
    for load in (FDTProcessor.from_pretrained, AutoProcessor.from_pretrained):
        reloaded = load(tmp_path)
        assert type(reloaded) is FDTProcessor
        assert (type(reloaded.image_processor), type(reloaded.tokenizer)) == (FDTImageProcessor, FDTTokenizer)
        batch = reloaded(images=images, text=captions, return_tensors="pt")
        for name in expected:
            torch.testing.assert_close(batch[name], expected[name], rtol=0, atol=0)


@needs_auto_image_processor
def test_auto_image_processor(tiny_processor, tmp_path):
    tiny_processor.save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is FDTImageProcessor
