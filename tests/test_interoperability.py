"""FDT with the packages around transformers, each the real one: what they make of a model equals the model."""

import copy
import json
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import peft
import pytest
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from torch.export import ExportedProgram
from torch.nn.functional import cosine_similarity
from transformers import BitsAndBytesConfig

from modeling_fdt import FDTModel, FDTVisionModel
from run_scripts.export import towers
from run_scripts.export.towers import export_tower
from run_scripts.hub.sparse_encoder import write_sparse_encoder
from tests.conftest import build_tiny_config


# Code weights and embeddings in another order of float32 sums, on values of at most 1.
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture
def folder(tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def expected(tiny_model, inputs):
    with torch.inference_mode():
        return tiny_model(**inputs)


# peft


def test_lora_trains_saves_loads_and_merges(folder, tiny_model, inputs):
    base = copy.deepcopy(tiny_model.state_dict())
    lora = peft.LoraConfig(r=4, target_modules=r"(vision|text)_tower\..*(q_proj|v_proj)", init_lora_weights=False)
    model = peft.get_peft_model(tiny_model, lora)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 2 * 2 * 2 and all(
        "lora_" in name for name in trained
    )  # towers, layers, q and v, A and B
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model.train()(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    outputs = model.eval()(**inputs)

    model.save_pretrained(folder / "adapter")
    assert sorted(path.name for path in (folder / "adapter").iterdir()) == [
        *("README.md", "adapter_config.json", "adapter_model.safetensors")
    ]
    reloaded = peft.PeftModel.from_pretrained(FDTModel.from_pretrained(folder), folder / "adapter").eval()
    torch.testing.assert_close(reloaded(**inputs).logits_per_image, outputs.logits_per_image, rtol=0, atol=0)

    merged = reloaded.merge_and_unload()
    assert type(merged) is FDTModel and merged.state_dict().keys() == base.keys()
    torch.testing.assert_close(merged(**inputs).image_embeds, outputs.image_embeds, **CLOSE)
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, base[name])}
    assert len(changed) == 8 and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)


# bitsandbytes


def test_int8(folder, inputs, expected):
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    model = FDTModel.from_pretrained(folder, quantization_config=quantization, device_map="cpu")
    model.save_pretrained(folder / "int8")
    for quantized in (model, FDTModel.from_pretrained(folder / "int8", device_map="cpu")):
        linears = [m for m in quantized.modules() if isinstance(m, torch.nn.Linear)]
        assert len(linears) == 28 and all(linear.weight.dtype == torch.int8 for linear in linears)
        outputs = quantized(**inputs)
        for name in ("image_embeds", "text_embeds"):
            # 8 bits resolve 1 in 127; averaged over 32 dimensions that leaves less than 1 in 100.
            assert cosine_similarity(outputs[name], expected[name]).min() > 0.99


# torch.export and ONNX


@dataclass
class Exported:
    model: FDTModel
    inputs: dict[str, dict[str, torch.Tensor]]  # by modality
    programs: dict[str, ExportedProgram]


@pytest.fixture(scope="module")
def exported() -> Exported:
    torch.manual_seed(0)
    model = FDTModel(build_tiny_config()).eval()
    ids = torch.tensor([[49407, 320, 2368, 49408, 0, 0], [49407, 1237, 3255, 525, 518, 49408]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    inputs = {
        "image": {"pixel_values": torch.randn(2, 3, 32, 32)},
        "text": {"input_ids": ids, "attention_mask": mask},
    }
    return Exported(model, inputs, {name: export_tower(model, name, inputs[name]) for name in inputs})


def vary_inputs(exported: Exported, modality: str) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """What the half was exported with, one picture or caption, five of another length; with the model's outputs."""
    inputs = exported.inputs[modality]
    one = {name: value[:1] for name, value in inputs.items()}
    five = {name: torch.cat([value, value, value[:1]]) for name, value in inputs.items()}
    if modality == "text":
        one = {name: value[:, :4] for name, value in one.items()}
        five = {name: torch.nn.functional.pad(value, (0, 71)) for name, value in five.items()}
    with torch.inference_mode():
        return [(case, exported.model(**case)) for case in (inputs, one, five)]


@pytest.mark.parametrize("modality", ["image", "text"])
def test_torch_export(exported, modality):
    program = exported.programs[modality]
    assert not any("sparsemax" in str(node.target) for node in program.graph.nodes)  # no operators of this package
    for inputs, outputs in vary_inputs(exported, modality):
        embeds, code_weights = program.module()(*inputs.values())
        torch.testing.assert_close(embeds, outputs[f"{modality}_embeds"], **CLOSE)
        torch.testing.assert_close(code_weights, outputs[f"{modality}_code_weights"], **CLOSE)


@pytest.mark.slow
def test_onnx(exported, tiny_processor, tmp_path, monkeypatch):
    exported.model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    # Exporting takes seconds: what the fixture exported is of the same model.
    monkeypatch.setattr(towers, "export_tower", lambda model, modality, inputs: exported.programs[modality])
    towers.export_onnx(str(tmp_path), tmp_path / "onnx")
    for modality in ("image", "text"):
        path = tmp_path / "onnx" / f"{modality}.onnx"
        assert {node.domain for node in onnx.load(path).graph.node} == {""}  # ONNX's own operators only
        session = onnxruntime.InferenceSession(path)
        for inputs, outputs in vary_inputs(exported, modality):
            embeds, code_weights = session.run(None, {name: value.numpy() for name, value in inputs.items()})
            np.testing.assert_allclose(embeds, outputs[f"{modality}_embeds"], rtol=0, atol=1e-5)
            np.testing.assert_allclose(code_weights, outputs[f"{modality}_code_weights"], rtol=0, atol=1e-5)


def test_a_file_that_differs_is_refused(monkeypatch, tmp_path):
    class Program:
        def module(self):
            return lambda pixel_values: (torch.zeros(1), torch.zeros(1))

    class Session:
        def __init__(self, path):
            pass

        def run(self, names, inputs):
            return [np.zeros(1), np.full(1, 2e-4)]

    class OnnxProgram:
        def save(self, path):
            pass

    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: OnnxProgram())
    monkeypatch.setattr(towers.onnxruntime, "InferenceSession", Session)
    with pytest.raises(ValueError, match="`image_code_weights` differs from the model's by 0.0002"):
        towers.save_onnx(Program(), "image", {"pixel_values": torch.zeros(1)}, tmp_path / "image.onnx")


# sentence-transformers


@pytest.mark.parametrize("is_sparse_encoder", [False, True])
def test_sentence_transformers(folder, images, captions, expected, is_sparse_encoder):
    if is_sparse_encoder:
        write_sparse_encoder(folder)
    encoder = SentenceTransformer(str(folder), device="cpu")
    encoder.save_pretrained(str(folder / "encoder"))
    for same in (encoder, SentenceTransformer(str(folder / "encoder"), device="cpu")):
        image_embeds, text_embeds = same.encode(images), same.encode(captions)
        np.testing.assert_allclose(image_embeds, expected.image_embeds, rtol=0, atol=1e-5)
        np.testing.assert_allclose(text_embeds, expected.text_embeds, rtol=0, atol=1e-5)
        cosines = expected.image_embeds @ expected.text_embeds.T
        torch.testing.assert_close(same.similarity(image_embeds, text_embeds), cosines, **CLOSE)


@pytest.fixture
def sparse_encoder(folder) -> SparseEncoder:
    (folder / "code_names.json").write_text(json.dumps({"7": "dog", "40": "grass"}))
    write_sparse_encoder(folder)
    return SparseEncoder(str(folder), trust_remote_code=True, device="cpu")


def test_sparse_encoder_gives_code_weights(sparse_encoder, folder, images, captions, expected):
    sparse_encoder.save_pretrained(str(folder / "encoder"))
    again = SparseEncoder(str(folder / "encoder"), trust_remote_code=True, device="cpu")
    image_weights, text_weights = expected.image_code_weights, expected.text_code_weights
    for same in (sparse_encoder, again):
        images_of_codes, texts_of_codes = same.encode(images), same.encode(captions)
        assert images_of_codes.is_sparse and same.get_embedding_dimension() == 64
        torch.testing.assert_close(images_of_codes.to_dense(), image_weights, **CLOSE)
        torch.testing.assert_close(texts_of_codes.to_dense(), text_weights, **CLOSE)
        cosines = cosine_similarity(image_weights[:, None], text_weights[None], dim=-1)
        torch.testing.assert_close(same.similarity(images_of_codes, texts_of_codes), cosines, **CLOSE)
        names = [name for name, _ in same.decode(images_of_codes)[0]]
        by_weight = image_weights[0].argsort(descending=True)[: len(names)].tolist()
        assert names == [{7: "dog", 40: "grass"}.get(code, f"code {code}") for code in by_weight]


def test_sparse_encoder_decodes_codes_by_name(sparse_encoder):
    weights = torch.zeros(2, 64)
    weights[0, 7], weights[0, 3], weights[1, 40] = 0.25, 0.75, 1
    for form in (weights, weights.to_sparse()):
        assert sparse_encoder.decode(form) == [[("code 3", 0.75), ("dog", 0.25)], [("grass", 1)]]
        assert sparse_encoder.decode(form, top_k=1) == [[("code 3", 0.75)], [("grass", 1)]]
        assert sparse_encoder.decode(form[1]) == [("grass", 1)]
    with pytest.raises(ValueError, match="top_k must be at least 1 or None, got 0"):
        sparse_encoder.decode(weights, top_k=0)
    with pytest.raises(ValueError, match=r"must have shape \(\[batch_size,\] 64\), got \(2, 32\)"):
        sparse_encoder.decode(weights[:, :32])


def test_sparse_encoder_needs_both_towers(folder, tiny_config):
    FDTVisionModel(tiny_config).save_pretrained(folder / "half")
    with pytest.raises(ValueError, match="must hold an FDTModel"):
        write_sparse_encoder(folder / "half")


# accelerate


@pytest.mark.parametrize(
    "device_map",
    [
        {"": "cpu"},
        {"vision_tower": "disk", "text_tower": "cpu", "vision_grounding": "cpu", "text_grounding": "disk"},
    ],
)
def test_device_map(folder, inputs, expected, device_map):
    if len(device_map) > 1:
        device_map |= {"codebook": "cpu", "logit_scale": "cpu"}
    model = FDTModel.from_pretrained(folder, device_map=device_map, offload_folder=folder / "offload")
    assert (model.vision_tower.embeddings.patch_embedding.weight.device.type == "meta") == (len(device_map) > 1)
    for name in ("logits_per_image", "image_code_weights", "text_code_weights"):
        torch.testing.assert_close(model(**inputs)[name], expected[name], rtol=1e-5, atol=1e-5)
    features = model.get_image_features(inputs["pixel_values"])
    torch.testing.assert_close(features.image_embeds, expected.image_embeds, **CLOSE)


def test_what_does_not_fit_goes_to_disk(folder, inputs, expected):
    # The text tower's embeddings alone take 6 MB. What is called is the model: a codebook on disk is read for that.
    model = FDTModel.from_pretrained(
        folder, device_map="auto", max_memory={"cpu": "4MB"}, offload_folder=folder / "offload"
    )
    assert "disk" in model.hf_device_map.values() and model.codebook.device.type == "meta"
    torch.testing.assert_close(model(**inputs).logits_per_image, expected.logits_per_image, rtol=1e-5, atol=1e-5)


# safetensors


def test_safetensors_alone(folder, tiny_model):
    assert {path.suffix for path in folder.iterdir()} == {"", ".json", ".py", ".safetensors"}
    loaded = FDTModel.from_pretrained(folder, use_safetensors=True)
    assert all(torch.equal(value, tiny_model.state_dict()[name]) for name, value in loaded.state_dict().items())
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError):
        FDTModel.from_pretrained(folder, use_safetensors=True)
