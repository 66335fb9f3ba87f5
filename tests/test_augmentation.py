# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Images varied in training: as each step is defined, the same on workers and on the device, the same for a seed."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch.utils.data import DataLoader

from run_scripts.benchmarks import benchmark_augmentation
from run_scripts.data.augmentation import Augmentation, RandomResizedCrop
from run_scripts.data.augmentation_steps import STEPS, ColorJitter, RandomAffine, RandomGaussianBlur
from run_scripts.data.batches import ContrastiveCollator, ReproducibleCollator


MOCO = {
    "RandomResizedCrop": {"size": [32, 32], "scale": [0.2, 1.0]},
    "ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8},
    "RandomGrayscale": {"p": 0.2},
    "RandomGaussianBlur": {"sigma": [0.1, 2.0], "p": 0.5},
    "RandomHorizontalFlip": {"p": 0.5},
}
# One of each, none of them weak.
EVERY_STEP = [
    ("ColorJitter", {"brightness": 0.9}),
    ("ColorJitter", {"contrast": 0.9}),
    ("ColorJitter", {"saturation": 0.9}),
    ("ColorJitter", {"hue": 0.5}),
    ("RandomAffine", {"degrees": 180, "translate": [0.2, 0.1], "scale": [0.5, 2.0], "shear": 20}),
    ("RandomGaussianBlur", {"sigma": [0.1, 2.0], "p": 1.0}),
    ("RandomGaussianNoise", {"std": 0.2, "p": 1.0}),
    ("RandomGrayscale", {"p": 1.0}),
    ("RandomHorizontalFlip", {"p": 1.0}),
    ("RandomRGBShift", {"r_shift_limit": 0.5, "g_shift_limit": 0.2, "b_shift_limit": 0.0, "p": 1.0}),
    ("Resize", {"size": [20, 48]}),
]


def noise(*sizes: tuple[int, int]) -> list[dict]:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    return [{"image": image, "caption": ["one", "two words"]} for image in images]


def photograph() -> Image.Image:
    """Strong colours that change smoothly."""
    return noise((6, 8))[0]["image"].resize((64, 48), Image.Resampling.BICUBIC)


def to_batch(*images: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.array(image) for image in images])).permute(0, 3, 1, 2).float() / 255


def to_levels(pixels: torch.Tensor) -> np.ndarray:
    """Images of a batch as they are in bytes, unrounded: (batch_size, height, width, 3)."""
    return 255 * pixels.permute(0, 2, 3, 1).numpy()


def vary_both(name: str, arguments: dict, drawn: list[float], image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """One image, varied by OpenCV and by torch."""
    step, drawn = STEPS[name](**arguments), np.array(drawn)
    return step.vary_image(np.array(image), drawn), to_levels(step.vary_batch(to_batch(image), drawn[None]))[0]


# The crop


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (30, 30)])
def test_crops_have_the_area_and_shape_that_is_asked_for(size):
    crop, random = RandomResizedCrop([16, 16], scale=[0.2, 1.0]), np.random.default_rng(0)
    boxes = np.array([crop.draw_box(*size, random) for _ in range(500)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= size[0]).all() and (bottom <= size[1]).all()
    areas, ratios = (right - left) * (bottom - top) / (size[0] * size[1]), (right - left) / (bottom - top)
    assert 0.2 <= areas.min() < 0.25 and 0.85 < areas.max() <= 1
    assert 3 / 4 <= ratios.min() < 0.8 and 1.25 < ratios.max() <= 4 / 3


def test_an_image_too_long_for_any_crop_is_cut_centrally():
    crop = RandomResizedCrop([16, 16], scale=[0.9, 1.0])
    assert crop.draw_box(1000, 100, np.random.default_rng(0)) == pytest.approx((500 - 200 / 3, 0, 500 + 200 / 3, 100))


def test_a_crop_of_all_is_a_resize(tiny_processor):
    image = noise((64, 64))[0]["image"]
    crop = RandomResizedCrop([32, 32], scale=[1.0, 1.0], ratio=[1.0, 1.0])
    resized = image.resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(crop(image, np.random.default_rng(0)), resized)
    plain = tiny_processor(images=[image], return_tensors="pt")["pixel_values"]
    augmentation = Augmentation(
        {"RandomResizedCrop": {"size": [32, 32], "scale": [1, 1], "ratio": [1, 1]}}, tiny_processor.image_processor
    )
    for vary in (augmentation.vary_images, augmentation.vary_batch):
        # Rescaling by 1 / 255 and division by 255 differ in the last bit of float32.
        torch.testing.assert_close(vary(augmentation.cut([image], 0), 0), plain, rtol=0, atol=1e-6)


def test_without_a_size_images_are_resized_and_cropped_as_in_evaluation(tiny_processor):
    rows = noise((40, 50), (64, 33), (20, 20))
    steps = {"RandomHorizontalFlip": {"p": 1.0}}
    pixels = ContrastiveCollator(tiny_processor, steps)(rows)["pixel_values"]
    plain = tiny_processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, plain.flip(-1), rtol=0, atol=1e-6)  # as above


def test_images_that_stay_of_several_sizes_are_refused(tiny_processor):
    collator = ContrastiveCollator(tiny_processor, {"Resize": {"size": [32, 32]}})
    with pytest.raises(ValueError, match="must begin with RandomResizedCrop or name no size"):
        collator(noise((32, 32), (40, 40)))


# Each step is as it is defined


@pytest.mark.parametrize(
    "arguments, drawn, expected",
    [
        ({"brightness": 0.4}, [1.4, 0], [[255, 140, 70], [0, 56, 140]]),  # 200 * 1.4 is too bright
        # Brightness is 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2, and 34.88: on average 79.54.
        ({"contrast": 0.5}, [0.5, 0], [[140, 90, 65], [40, 60, 90]]),
        ({"saturation": 0.5}, [0.5, 0], [[162, 112, 87], [17, 37, 67]]),
        # A third of a turn moves the channels on; half a turn takes each from largest + smallest.
        ({"hue": 0.5}, [1 / 3, 0], [[50, 200, 100], [100, 0, 40]]),
        ({"hue": 0.5}, [-1 / 3, 0], [[100, 50, 200], [40, 100, 0]]),
        ({"hue": 0.5}, [0.5, 0], [[50, 150, 200], [100, 60, 0]]),
        # The last numbers are the order: hue first, brightness first.
        ({"brightness": 1.0, "hue": 0.5}, [2.0, 0.5, 1, 0], [[100, 255, 255], [200, 120, 0]]),
        ({"brightness": 1.0, "hue": 0.5}, [2.0, 0.5, 0, 1], [[100, 155, 255], [200, 120, 0]]),
    ],
)
def test_colour_jitter_by_hand(arguments, drawn, expected):
    image = Image.fromarray(np.array([[[200, 100, 50], [0, 40, 100]]], dtype=np.uint8))
    for varied in vary_both("ColorJitter", arguments, drawn, image):
        assert np.abs(varied[0] - np.array(expected)).max() <= 1  # of 255: bytes are rounded at every operation


def shift_hue(image: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    hue = Image.fromarray((np.array(hue).astype(int) + round(shift * 256)).astype(np.uint8))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


@pytest.mark.parametrize(
    "name, arguments, drawn, by_pil",
    [
        *[
            (
                "ColorJitter",
                {argument: 0.4},
                [factor, 0],
                lambda image, by=by, factor=factor: by(image).enhance(factor),
            )
            for argument, by in [
                ("brightness", ImageEnhance.Brightness),
                ("contrast", ImageEnhance.Contrast),
                ("saturation", ImageEnhance.Color),
            ]
            for factor in (0.6, 1.4)
        ],
        *[
            ("ColorJitter", {"hue": 0.1}, [shift, 0], lambda image, shift=shift: shift_hue(image, shift))
            for shift in (-0.1, 0.1)
        ],
        ("RandomGrayscale", {}, [], lambda image: image.convert("L").convert("RGB")),
        ("RandomHorizontalFlip", {}, [], ImageOps.mirror),
        ("RandomGaussianBlur", {"sigma": [2, 2]}, [2.0], lambda image: image.filter(ImageFilter.GaussianBlur(2))),
    ],
)
def test_the_recipe_of_moco_is_that_of_pil(name, arguments, drawn, by_pil):
    """torchvision, by which MoCo v2 was trained, leaves these to PIL."""
    expected = np.array(by_pil(photograph())).astype(float)
    # PIL's enhancers do not round, but cut off. Its hues are 256, and its blur stands for a Gaussian's.
    mean, largest = {"hue": (1, 9), "sigma": (1, 6)}.get(next(iter(arguments), None), (0.5, 2))
    for varied in vary_both(name, arguments, drawn, photograph()):
        difference = np.abs(varied - expected)
        assert difference.mean() <= mean and difference.max() <= largest


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_a_blurred_point_is_a_gaussian(sigma):
    point = np.zeros((21, 21, 3), dtype=np.uint8)
    point[10, 10] = 255
    curve = np.exp(-((np.arange(21) - 10) ** 2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    if sigma == 0.5:
        curve /= curve.sum()  # its samples do not add up to 1
    for varied in vary_both("RandomGaussianBlur", {"sigma": [0.1, 2.0]}, [sigma], Image.fromarray(point)):
        # 0.3% of a Gaussian lies beyond three standard deviations.
        np.testing.assert_allclose(varied[..., 0], 255 * np.outer(curve, curve), atol=0.5 + 0.01 * 255 * curve.max())


def test_an_affine_map_by_hand():
    image = noise((21, 31))[0]["image"]
    angle, right, down, scale, shear = 0.0, 0.0, 0.0, 1.0, 0.0
    for varied in vary_both("RandomAffine", {"degrees": 0}, [angle, 2 / 31, -3 / 21, scale, shear], image):
        assert np.abs(varied[:-3, 2:] - np.array(image)[3:, :-2]).max() <= 0.5  # two to the right, three up
        assert np.abs(varied[:-3, :2] - np.array(image)[3:, :1]).max() <= 0.5  # the border goes on
    for varied in vary_both("RandomAffine", {"degrees": 0}, [180, right, down, scale, shear], image):
        assert np.abs(varied - np.array(image.rotate(180))).max() <= 0.5
    for varied in vary_both("RandomAffine", {"degrees": 0}, [angle, right, down, 2.0, shear], image):
        assert np.abs(varied[::2, 1::2] - np.array(image)[5:16, 8:23]).max() <= 0.5  # about the centre (15, 10)
    for varied in vary_both("RandomAffine", {"degrees": 0}, [angle, right, down, scale, 45], image):
        assert np.abs(varied[12, 2:] - np.array(image)[12, :-2]).max() <= 0.5  # as far right as it is below the centre


def test_noise_has_the_standard_deviation_that_is_asked_for():
    gray = Image.new("RGB", (100, 100), (128, 128, 128))
    first, second = (vary_both("RandomGaussianNoise", {"std": 0.1}, [seed], gray) for seed in (0, 1))
    for varied, other in zip(first, second, strict=True):
        assert (varied - 128.0).std() == pytest.approx(25.5, rel=0.02) and varied.mean() == pytest.approx(128, abs=0.5)
        assert np.abs(np.corrcoef(varied.ravel(), other.ravel())[0, 1]) < 0.03


# What is drawn


def test_what_colour_jitter_draws():
    drawn = ColorJitter(brightness=0.4, contrast=1.5, hue=0.1).draw(6000, np.random.default_rng(0))
    values, orders = drawn[:, :3], drawn[:, 3:]
    # A factor of contrast is never below 0; saturation is not asked for.
    assert values.min(0) == pytest.approx([0.6, 0, -0.1], abs=0.01)
    assert values.max(0) == pytest.approx([1.4, 2.5, 0.1], abs=0.01)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6 and counts.min() > 900  # every order, about 1000 times


def test_what_is_drawn_fills_its_range():
    random = np.random.default_rng(0)
    sigma = RandomGaussianBlur([0.1, 2.0]).draw(1000, random)
    assert (sigma.min(), sigma.max(), sigma.mean()) == pytest.approx((0.1, 2.0, 1.05), abs=0.05)
    drawn = RandomAffine(15, [0.08, 0.05], [0.75, 1.25], 8).draw(1000, random)
    assert drawn.min(0) == pytest.approx([-15, -0.08, -0.05, 0.75, -8], rel=0.03)
    assert drawn.max(0) == pytest.approx([15, 0.08, 0.05, 1.25, 8], rel=0.03)


def test_p_is_the_share_of_images_that_are_varied(tiny_processor):
    augmentation = Augmentation({"RandomHorizontalFlip": {"p": 0.2}}, tiny_processor.image_processor)
    image = noise((32, 32))[0]["image"]
    pixels, plain = (
        augmentation.cut([image] * 2000, 0),
        tiny_processor(images=image, return_tensors="pt")["pixel_values"],
    )
    for vary in (augmentation.vary_images, augmentation.vary_batch):
        is_varied = ((vary(pixels, 0) - plain).abs() > 1e-3).flatten(1).any(dim=1)
        assert is_varied.float().mean() == pytest.approx(0.2, abs=0.03)  # three standard deviations


# Workers and device


@pytest.mark.parametrize("name, arguments", EVERY_STEP, ids=lambda value: value if isinstance(value, str) else None)
def test_every_step_is_the_same_on_workers_and_device(name, arguments):
    """Up to rounding to bytes, for images of noise as of smooth colours; and what a step is given stays as it was."""
    step, images = STEPS[name](**arguments), [photograph(), noise((48, 64))[0]["image"]] * 4
    drawn, pixels = step.draw(len(images), np.random.default_rng(0)), to_batch(*images)
    by_torch = to_levels(step.vary_batch(pixels, drawn))
    assert torch.equal(pixels, to_batch(*images))
    for image, row, expected in zip(images, drawn, by_torch, strict=True):
        given = np.array(image)
        varied = step.vary_image(given, row)
        assert np.array_equal(given, image)
        # Half a byte and a little for fixed-point numbers; a whole one where gray, or rows before columns, are bytes.
        tolerance = 1 if "saturation" in arguments or name == "Resize" else 0.51
        assert varied.dtype == np.uint8 and np.abs(varied - expected).max() <= tolerance


def test_every_step_is_tested():
    assert {name for name, _ in EVERY_STEP} == {*STEPS}


def test_the_recipe_is_the_same_on_workers_and_device(tiny_processor):
    augmentation = Augmentation(MOCO, tiny_processor.image_processor)
    pixels = augmentation.cut([row["image"] for row in noise((40, 50), (64, 33), (20, 20))] * 20, 0)
    on_workers, on_device = augmentation.vary_images(pixels, 0), augmentation.vary_batch(pixels, 0)
    levels = (
        255 * (on_workers - on_device).abs() * torch.tensor(tiny_processor.image_processor.image_std)[:, None, None]
    )
    # Six roundings, of which later operations may enlarge the first by up to 1.4 ** 3.
    assert levels.mean() < 0.5 and levels.max() < 4
    assert len(on_device.unique(dim=0)) == 60


def test_the_device_is_given_bytes_and_a_seed(tiny_processor):
    rows = noise((40, 50), (64, 33), (20, 20))
    torch.manual_seed(0)
    on_workers = ContrastiveCollator(tiny_processor, MOCO)(rows)["pixel_values"]
    torch.manual_seed(0)
    collator = ContrastiveCollator(tiny_processor, MOCO, augment_on_device=True)
    pixels, seed = collator(rows)["pixel_values"]
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 32, 32, 3)
    assert torch.equal(collator.augmentation.vary_images(pixels, seed), on_workers)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_gives_what_torch_gives_on_the_cpu(tiny_processor):
    augmentation = Augmentation(MOCO, tiny_processor.image_processor)
    pixels = augmentation.cut([row["image"] for row in noise((40, 50), (64, 33))] * 20, 0)
    on_device = augmentation.vary_batch(pixels.cuda(), 0)
    # A hue at the border of two sixths may fall into either; both give the same colour up to rounding of float32.
    torch.testing.assert_close(on_device.cpu(), augmentation.vary_batch(pixels, 0), rtol=0, atol=1e-3)


def test_the_benchmark_compares_the_ways(tmp_path, capsys):
    config = tmp_path / "run.json"
    config.write_text(json.dumps({"augmentation": {"RandomResizedCrop": {"size": [224, 224]}}}))
    benchmark_augmentation.main(benchmark_augmentation.AugmentationBenchmarkArguments(str(config), 40, 2, 1))
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 4 and all(re.fullmatch(r"\| [A-Za-z, ]+ \| [0-9.]+ \| [0-9,]+ \|", line) for line in lines)


# Seeds


def test_the_recipe_takes_images_of_any_size_and_follows_torchs_generator(tiny_processor):
    collator, rows = ContrastiveCollator(tiny_processor, MOCO), noise((40, 50), (64, 33), (20, 20))

    def pixels(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return collator(rows)["pixel_values"]

    assert pixels(0).shape == (3, 3, 32, 32)
    assert torch.equal(pixels(0), pixels(0))
    assert not torch.equal(pixels(0), pixels(1))


def test_augmentation_leaves_the_generators_where_they_were(tiny_processor):
    augmentation = Augmentation(MOCO, tiny_processor.image_processor)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    pixels = augmentation.cut([row["image"] for row in noise((40, 40))], 1)
    augmentation.vary_images(pixels, 1), augmentation.vary_batch(pixels, 1)
    assert torch.equal(torch.get_rng_state(), before) and np.array_equal(np.random.get_state()[1], numpys)


def test_batches_are_the_same_on_any_number_of_workers(tiny_processor):
    rows = [{**row, "caption": str(i)} for i, row in enumerate(noise(*[(40, 50), (64, 33), (20, 20)] * 4))]
    collator = ReproducibleCollator(ContrastiveCollator(tiny_processor, MOCO), seed=0)
    ours, theirs = (
        [batch["pixel_values"] for batch in DataLoader(rows, 3, collate_fn=collator, num_workers=number)]
        for number in (0, 2)
    )
    assert len(ours) == 4 and all(map(torch.equal, ours, theirs))


# Refusals


@pytest.mark.parametrize(
    "augmentation, message",
    [
        ({"RandomFlip": {}}, "must name .*'RandomHorizontalFlip'.*, got 'RandomFlip'"),
        ({"RandomGrayscale": {}, "RandomResizedCrop": {"size": [32, 32]}}, "at first RandomResizedCrop, got 'RandomR"),
        ({"RandomHorizontalFlip": {"prob": 0.5}}, "RandomHorizontalFlip does not take {'prob': 0.5}"),
        ({"RandomHorizontalFlip": {"p": 1.5}}, "p must be from 0 to 1, got 1.5"),
        ({"RandomHorizontalFlip": []}, r"RandomHorizontalFlip does not take \[\]"),
        ({"RandomResizedCrop": {"size": [32, 32], "scales": [1, 1]}}, "RandomResizedCrop does not take"),
        ({"RandomResizedCrop": {"size": [32, 32], "scale": [1.0, 0.2]}}, "scale must rise within"),
        ({"RandomResizedCrop": {"size": 32}}, "RandomResizedCrop does not take"),
        ({"RandomResizedCrop": {"size": [24, 32]}}, r"must end in images of \(32, 32\), got \(24, 32\)"),
        ({"Resize": {"size": [24, 24]}}, r"must end in images of \(32, 32\), got \(24, 24\)"),
        ({"ColorJitter": {"contrast": -0.1}}, "contrast must be from 0 to inf, got -0.1"),
        ({"ColorJitter": {"hue": 0.6}}, "hue must be from 0 to 0.5, got 0.6"),
        ({"RandomGaussianBlur": {"sigma": [2.0, 0.1]}}, "sigma must be two numbers above 0, the smaller first"),
        ({"RandomAffine": {"degrees": 8, "shear": 90}}, "shear must be from 0 to 80, got 90"),
        ({"RandomAffine": {"degrees": 8, "translate": [0, 2]}}, "translate must be from 0 to 1, got 2"),
        ({"RandomAffine": {"degrees": 8, "scale": [0, 1]}}, "scale must be two numbers above 0"),
        ({"RandomRGBShift": {"r_shift_limit": 0, "g_shift_limit": 9, "b_shift_limit": 0}}, "g_shift_limit must be"),
        ({"RandomGaussianNoise": {"std": -1}}, "std must be from 0 to inf, got -1"),
    ],
)
def test_bad_augmentation_is_refused(tiny_processor, augmentation, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(augmentation, tiny_processor.image_processor)
