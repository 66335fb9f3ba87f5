"""A checkpoint of DECLIP+FDT becomes an FDTModel and what goes on training it, and comes back."""

import logging
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from safetensors.torch import load_file, save_file

from conversion.convert_fdt_to_hf import ConversionArguments, convert_fdt_to_hf
from conversion.convert_hf_to_fdt import BackConversionArguments, convert_hf_to_fdt
from conversion.key_map import DECLIP_HEADS, DECLIP_QUEUE, DROPPED
from conversion.original_checkpoint import read_original_checkpoint, write_original_checkpoint
from modeling_fdt import FDTModel
from run_scripts.training.pretraining import train
from tests import golden
from tests.test_conversion import CASE, linear, norm, random_tensors, raw_config, states_are_equal, write_config
from tests.test_run_pretraining import parse


QUEUE_SIZE = 24


def head_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of DECLIP_FDT's heads on features of 64 dimensions and words of 64."""
    shapes = linear("text_label_predictor", 49409, 64) | linear("projector.linear1", 1024, 64)
    shapes |= linear("projector.linear2", 1024, 1024) | linear("projector.linear3", 1024, 1024)
    shapes |= linear("predictor.linear1", 512, 1024) | linear("predictor.layer2", 1024, 512)
    for name, size in [(f"projector.bn{n}", 1024) for n in (1, 2, 3)] + [("predictor.bn1", 512)]:
        shapes |= norm(name, size) | {f"{name}.running_mean": (size,), f"{name}.running_var": (size,)}
    return shapes


def declip_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The recorded checkpoint's tensors, and heads and queues of random numbers."""
    tensors = dict(read_original_checkpoint(golden.write_checkpoint("tiny_clip_fdt", folder)).tensors)
    del tensors["logit_scale_sd"]  # DECLIP_FDT has none
    tensors |= random_tensors(head_shapes())
    for name in [name for name in tensors if name.endswith("running_var")]:
        tensors[name] = tensors[name].abs()
        tensors[name.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    bank = torch.nn.functional.normalize(torch.randn(64, QUEUE_SIZE), dim=0)
    tensors |= {"nn_replacer_text.bank": bank, "nn_replacer_text.bank_ptr": torch.tensor([5])}
    return tensors | {"nn_replacer_img.bank": torch.zeros(0), "nn_replacer_img.bank_ptr": torch.zeros(0)}


def write_declip(folder: Path, tensors: dict[str, torch.Tensor]) -> ConversionArguments:
    folder.mkdir(exist_ok=True)
    raw = raw_config()
    section = raw["model"]["kwargs"].pop("fdt")
    raw["model"]["type"] = "declip_fdt_vitb32"
    section |= {"return_nn_bank": True, "text_mask_type": "MLM", "feature_dim": 64, "nn_size": QUEUE_SIZE}
    raw["model"]["kwargs"]["clip"] = section
    write_original_checkpoint(folder / "ckpt.pth.tar", tensors, 86560)
    return ConversionArguments(str(folder / "ckpt.pth.tar"), str(write_config(folder, raw)), str(folder / "out"))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return declip_tensors(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def converted(original, tmp_path_factory) -> Path:
    arguments = write_declip(tmp_path_factory.mktemp("declip"), original)
    convert_fdt_to_hf(arguments)
    return Path(arguments.output_dir)


def go_on(converted: Path, tmp_path: Path, learning_rate: float) -> Path:
    """The checkpoint after two steps with the converted model, heads and queue."""
    colors = ["red", "green", "blue", "black"]
    rows = [{"image": Image.new("RGB", (70, 70), color), "caption": f"a {color} square"} for color in colors]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "data"))
    run = {
        "model": str(converted),
        "objective": "declip",
        "declip_heads": str(converted / "declip.safetensors"),
        "queue_size": QUEUE_SIZE,
        "dataset": str(tmp_path / "data"),
        "augmentation": {"RandomHorizontalFlip": {"p": 0.5}, "RandomGaussianNoise": {"std": 1.0, "p": 1.0}},
        "output_dir": str(tmp_path / "output"),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": learning_rate,
        "weight_decay": 0.0,
        "save_strategy": "steps",
        "save_steps": 2,
        "report_to": "none",
        "use_cpu": True,
    }
    train(*parse(tmp_path, run))
    return tmp_path / "output" / "checkpoint-2"


def back(checkpoint: Path, folder: Path) -> dict[str, torch.Tensor]:
    heads = str(checkpoint / "declip.safetensors")
    convert_hf_to_fdt(BackConversionArguments(str(checkpoint), str(folder), declip_heads=heads))
    return read_original_checkpoint(folder / "ckpt.pth.tar").tensors


def test_features_are_the_recorded_ones(converted):
    recorded = golden.read_recording("tiny_clip_fdt", CASE).tensors
    model = FDTModel.from_pretrained(converted)
    with torch.no_grad():
        output = model(*(recorded[name] for name in ("input_ids", "pixel_values", "attention_mask")))
    for modality in ("image", "text"):
        expected = torch.nn.functional.normalize(recorded[f"{modality}_fdt_features"], dim=-1)
        torch.testing.assert_close(output[f"{modality}_embeds"], expected, atol=1e-5, rtol=0)
        weights = output[f"{modality}_code_weights"]
        torch.testing.assert_close(weights, recorded[f"{modality}_fdt_weights"], atol=1e-5, rtol=0)


def test_every_head_is_kept_and_the_rest_dropped_by_name(original, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        convert_fdt_to_hf(write_declip(tmp_path, original))
    assert "heads and queue of training are in declip.safetensors" in caplog.text and "verified" in caplog.text
    for name in ("nn_replacer_img.bank", "visual.proj", "encode_text.text_projection.weight"):
        assert f"dropped {name}: " in caplog.text
    kept = [entry.original for entry in DECLIP_HEADS + DECLIP_QUEUE]
    assert set(kept) <= original.keys() and not any(f"dropped {name}: " in caplog.text for name in kept)


def test_round_trip_is_exact(original, converted, tmp_path):
    there_and_back = back(converted, tmp_path / "back")
    expected = {name: tensor for name, tensor in original.items() if name in there_and_back}
    assert states_are_equal(there_and_back, expected)
    lost = original.keys() - there_and_back.keys()
    assert lost == {
        *("nn_replacer_img.bank", "nn_replacer_img.bank_ptr", "visual.proj"),
        *("encode_text.text_projection.weight", "encode_text.text_projection.bias"),
    }
    again = ConversionArguments(
        str(tmp_path / "back" / "ckpt.pth.tar"), str(tmp_path / "back" / "config.json"), str(tmp_path / "again")
    )
    convert_fdt_to_hf(again)
    assert states_are_equal(*(load_file(folder / "declip.safetensors") for folder in (converted, tmp_path / "again")))


def test_a_checkpoint_goes_on_training_and_comes_back(original, converted, tmp_path):
    after = back(go_on(converted, tmp_path, learning_rate=0.0), tmp_path / "back")
    assert int(after["nn_replacer_text.bank_ptr"]) == (5 + 2 * 8) % QUEUE_SIZE
    is_kept = torch.ones(QUEUE_SIZE, dtype=torch.bool)
    is_kept[5:21] = False  # two steps of four captions, each in two views
    bank = after["nn_replacer_text.bank"]
    assert torch.equal(bank[:, is_kept], original["nn_replacer_text.bank"][:, is_kept])
    assert not (bank == original["nn_replacer_text.bank"])[:, ~is_kept].all(dim=0).any()
    assert int(after["projector.bn1.num_batches_tracked"]) == 7 + 2 * 2
    trained = [name for name in after if not name.endswith(("running_mean", "running_var", "tracked"))]
    trained = [name for name in trained if not name.startswith("nn_replacer")]
    assert all(torch.equal(after[name], original[name]) for name in trained if name != "logit_scale")


def test_a_checkpoint_without_heads_or_queue(original, tmp_path):
    heads = {entry.original for entry in DECLIP_HEADS}
    without_queue = {name: tensor for name, tensor in original.items() if "nn_replacer" not in name}
    convert_fdt_to_hf(write_declip(tmp_path / "queueless", without_queue))
    ours = load_file(tmp_path / "queueless" / "out" / "declip.safetensors")
    assert len(ours) == len(heads) and not any("queue" in name for name in ours)
    bare = {name: tensor for name, tensor in without_queue.items() if name not in heads}
    convert_fdt_to_hf(write_declip(tmp_path / "headless", bare))
    assert not (tmp_path / "headless" / "out" / "declip.safetensors").exists()


@pytest.mark.parametrize(
    "name, tensor, message",
    [
        ("predictor.layer2.bias", None, "heads of DECLIP.FDT are incomplete: .'predictor.layer2.bias'. are missing"),
        ("projector.bn1.bias", torch.zeros(8), r"projector.bn1.bias: \(8,\), expected \(1024,\)"),
        ("projector.bn1.bias", torch.full((1024,), torch.nan), "projector.bn1.bias: 1,024 of 1,024 values are NaN"),
        ("projector.bn1.bias", torch.zeros(1024, dtype=torch.int64), "integers where weights belong"),
        ("nn_replacer_text.bank", torch.zeros(32, 24), r"nn_replacer_text.bank: \(32, 24\), expected \(64, 24\)"),
        ("projector.linear4.bias", torch.zeros(8), "nothing maps"),
    ],
)
def test_damaged_heads_are_refused(original, tmp_path, name, tensor, message):
    tensors = {**original, name: tensor}
    with pytest.raises(ValueError, match=message):
        convert_fdt_to_hf(write_declip(tmp_path, {n: t for n, t in tensors.items() if t is not None}))
    assert not (tmp_path / "out").exists()


def test_a_file_with_other_names_is_not_written_back(converted, tmp_path):
    save_file({"simsiam.projector.9.bias": torch.zeros(3)}, tmp_path / "declip.safetensors")
    arguments = BackConversionArguments(
        str(converted), str(tmp_path / "back"), declip_heads=str(tmp_path / "declip.safetensors")
    )
    with pytest.raises(ValueError, match="nothing maps .'simsiam.projector.9.bias'."):
        convert_hf_to_fdt(arguments)


def test_the_list_of_dropped_names_covers_what_is_kept_beside_the_model():
    names = [entry.original for entry in DECLIP_HEADS + DECLIP_QUEUE]
    patterns = DROPPED["declip_fdt_vitb32"]
    assert all(any(re.fullmatch(pattern, name) for pattern in patterns) for name in names)
