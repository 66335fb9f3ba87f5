"""What an Inference Endpoint answers: a server on this machine treats the handler as the endpoint's own does."""

import base64
import importlib.util
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
import torch
from huggingface_hub import InferenceClient
from PIL import Image

from modeling_fdt import FDTForImageClassification, FDTModel, FDTProcessor
from run_scripts.hub.endpoint import list_requirements, write_endpoint
from tests.conftest import save_tiny_checkpoint


class Request(BaseHTTPRequestHandler):
    """One request. Source: huggingface-inference-toolkit's webservice_starlette.predict."""

    endpoint = None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            if self.headers["Content-Type"].startswith("image/"):
                data = {"inputs": Image.open(BytesIO(body)).convert("RGB")}
            else:
                data = json.loads(body)
            if "inputs" not in data:
                raise ValueError(f"Body needs to provide a inputs key, recieved: {body!r}")
            query = dict(parse_qsl(urlsplit(self.path).query))
            if query and "parameters" not in data:
                data["parameters"] = {name: int(text) if text.isnumeric() else text for name, text in query.items()}
            status, answer = 200, self.endpoint(data)
        except Exception as error:
            status, answer = 400, {"error": str(error)}
        content = json.dumps(answer, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments) -> None:
        pass


def load_handler(folder: Path):
    """An EndpointHandler of the folder. Source: utils.check_and_register_custom_pipeline_from_directory there."""
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
        return module.EndpointHandler(str(folder))
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("endpoint")
    save_tiny_checkpoint(folder, tokenizer)
    (folder / "code_names.json").write_text(json.dumps({str(code): f"name of {code}" for code in range(32)}))
    write_endpoint(folder)
    return folder


@pytest.fixture(scope="module")
def url(folder):
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (Request,), {"endpoint": staticmethod(load_handler(folder))})
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="module")
def png(image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def encoded(png) -> str:
    return base64.b64encode(png).decode()


@pytest.fixture(scope="module")
def expected(folder, image):
    """What the model itself says of the image and two texts."""
    model, processor = FDTModel.from_pretrained(folder), FDTProcessor.from_pretrained(folder)
    inputs = processor(images=image, text=["a cat", "two dogs"], return_tensors="pt")
    with torch.inference_mode():
        return model(**inputs), model.explain(**inputs, top_k=3)


def post(url: str, inputs, content_type: str = "application/json", **parameters) -> tuple[int, dict | list]:
    body = inputs if isinstance(inputs, bytes) else json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    response = httpx.post(url, content=body, headers={"Content-Type": content_type}, timeout=60)
    return response.status_code, response.json()


def test_zero_shot_through_the_hubs_client(url, png, expected, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # for this machine's server
    outputs, _ = expected
    client = InferenceClient(base_url=url)
    answer = client.zero_shot_image_classification(png, ["a cat", "two dogs"], hypothesis_template="{}")
    scores = dict(zip(["a cat", "two dogs"], outputs.logits_per_image[0].softmax(dim=-1).tolist(), strict=True))
    assert {row.label: row.score for row in answer} == pytest.approx(scores, abs=1e-5)
    assert answer[0].score >= answer[1].score


def test_zero_shot_by_default_reads_labels_with_commas_and_data_urls(url, encoded):
    status, answer = post(url, f"data:image/png;base64,{encoded}", candidate_labels="cat, dog,")
    assert status == 200 and {row["label"] for row in answer} == {"cat", "dog"}
    assert (
        answer == post(url, encoded, candidate_labels=["cat", "dog"], hypothesis_template="This is a photo of {}.")[1]
    )


def test_an_image_as_the_body_has_its_parameters_in_the_address(url, png, encoded):
    status, answer = post(f"{url}?candidate_labels=cat,dog", png, content_type="image/png")
    assert status == 200 and answer == post(url, encoded, candidate_labels=["cat", "dog"])[1]
    status, answer = post(f"{url}?task=codes&top_k=2", png, content_type="image/png")
    assert status == 200 and answer == post(url, encoded, task="codes", top_k=2)[1]
    status, answer = post(url, png, content_type="image/png")
    assert status == 400 and "got 1 images, 0 texts and 0 labels" in answer["error"]


def test_embeddings(url, encoded, expected):
    outputs, _ = expected
    status, answer = post(url, {"images": [encoded], "texts": ["a cat", "two dogs"]}, task="embeddings")
    assert status == 200
    for name in ("image_embeds", "text_embeds"):
        torch.testing.assert_close(torch.tensor(answer[name]), outputs[name], rtol=0, atol=1e-5)
    assert list(post(url, {"texts": ["a cat"]}, task="embeddings")[1]) == ["text_embeds"]


def test_codes(url, encoded, expected):
    outputs, _ = expected
    status, answer = post(url, {"images": [encoded], "texts": ["a cat", "two dogs"]}, task="codes")
    assert status == 200
    for name in ("image", "text"):
        for listed, row in zip(answer[f"{name}_codes"], outputs[f"{name}_code_weights"], strict=True):
            weights, codes = row.topk(int((row > 0).sum()))
            assert [code["code"] for code in listed] == codes.tolist()
            assert [code["weight"] for code in listed] == pytest.approx(weights.tolist(), abs=1e-5)
            names = [f"name of {code}" if code < 32 else None for code in codes.tolist()]
            assert [code.get("name") for code in listed] == names
    best = post(url, {"texts": ["a cat"]}, task="codes", top_k=1)[1]["text_codes"]
    assert [[code["code"] for code in row] for row in best] == [[answer["text_codes"][0][0]["code"]]]


def test_explanation(url, encoded, expected):
    _, explanation = expected
    status, answer = post(url, {"images": [encoded], "texts": ["a cat", "two dogs"]}, task="explanation", top_k=3)
    assert status == 200
    assert [code["code"] for code in answer["codes"]] == explanation.image_codes[0].tolist()
    for place, code in enumerate(answer["codes"]):
        scores = torch.tensor(code["patch_scores"])
        torch.testing.assert_close(scores, explanation.patch_scores[0, place], rtol=0, atol=1e-5)
    for place, (name, text) in enumerate(zip(["a cat", "two dogs"], answer["texts"], strict=True)):
        assert text["text"] == name
        # float32 on logits of at most 15
        assert text["logit"] == pytest.approx(explanation.logits_per_image[0, place].item(), abs=1e-4)
        assert text["same_code_logit"] == pytest.approx(explanation.same_code_logits[0, place].item(), abs=1e-4)
        added = explanation.image_contributions[0, place].tolist()
        assert text["added_by_codes"] == pytest.approx(added, abs=1e-4)
        shared = zip(explanation.shared_codes[0, place], explanation.shared_contributions[0, place], strict=True)
        shared = [(code.item(), adds.item()) for code, adds in shared if adds > 0]
        assert [code["code"] for code in text["shared_codes"]] == [code for code, _ in shared]
    alone = post(url, encoded, task="explanation")[1]
    assert list(alone) == ["codes"] and len(alone["codes"]) == 6


IMAGE = "IMAGE"  # stands for one in base64


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        (IMAGE, {}, "at least one label in parameters.candidate_labels, got 1 images, 0 texts and 0 labels"),
        (IMAGE, {"candidate_labels": [1]}, "candidate_labels must be a list of texts, got [1]"),
        (IMAGE, {"candidate_labels": ["a"] * 65}, "candidate_labels must be at most 64, got 65"),
        (IMAGE, {"candidate_labels": ["a"], "hypothesis_template": "photo"}, "must be text with {} in place of"),
        (IMAGE, {"candidate_labels": ["a"], "top_k": 1}, "['candidate_labels', 'hypothesis_template'], got ['top_k']"),
        (IMAGE, {"task": "caption"}, "task must be one of ['zero-shot', 'embeddings', 'codes', 'explanation']"),
        (IMAGE, {"task": ["codes"]}, "task must be one of"),
        (IMAGE, {"task": "codes", "top_k": 0}, "top_k must be a whole number from 1 to 64, got 0"),
        (IMAGE, {"task": "codes", "top_k": True}, "top_k must be a whole number from 1 to 64, got True"),
        ({"texts": ["a"]}, {"task": "explanation"}, "explanation needs one image, got 0"),
        ({}, {"task": "codes"}, "inputs must be an image as base64, or"),
        (["a"], {"task": "codes"}, "got list"),
        ({"text": "a"}, {"task": "codes"}, "got ['text']"),
        ({"images": IMAGE}, {"task": "codes"}, "images must be a list of at most 64, got str"),
        ({"images": [], "texts": []}, {"task": "codes"}, "inputs must hold an image or a text, got none"),
        ({"images": [3]}, {"task": "codes"}, "image 0 must be base64 text, got int"),
        ({"images": [IMAGE, "/etc/hosts"]}, {"task": "codes"}, "image 1 must be base64 text, not a URL or a path"),
        ("http://127.0.0.1/image.png", {"task": "codes"}, "image 0 must be base64 text, not a URL or a path"),
        ("aGVsbG8=", {"task": "codes"}, "image 0 cannot be decoded"),
    ],
)
def test_what_is_wrong_with_a_request_is_told_with_status_400(url, encoded, inputs, parameters, message):
    inputs = json.loads(json.dumps(inputs).replace(f'"{IMAGE}"', f'"{encoded}"'))
    status, answer = post(url, inputs, **parameters)
    assert status == 400 and message in answer["error"]


def test_truncated_images_and_parameters_of_another_form(url, png):
    status, answer = post(url, base64.b64encode(png[: len(png) // 2]).decode(), task="codes")
    assert status == 400 and "image 0 cannot be decoded" in answer["error"]
    status, answer = post(url, b'{"inputs": {"texts": ["a"]}, "parameters": ["codes"]}')
    assert status == 400 and "parameters must be an object, got ['codes']" in answer["error"]


def test_what_is_written_beside_the_model(folder, tmp_path, tiny_config):
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert {"pillow", "transformers<6,>=5.17"} <= set(requirements) and "gradio" not in requirements
    assert {"gradio", *requirements} <= set(list_requirements("app"))
    FDTForImageClassification(tiny_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="an endpoint needs an FDTModel"):
        write_endpoint(tmp_path)
