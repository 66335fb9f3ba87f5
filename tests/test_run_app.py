"""The interactive demo: what its function returns, and the page on this machine, called as a browser calls it."""

import os

import numpy as np
import pytest
from PIL import Image


# Before gradio is imported: nothing of a test may leave this machine.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
gradio = pytest.importorskip("gradio", reason="needs the extra [app]")

from run_scripts.visualization import app as page  # noqa: E402
from run_scripts.visualization.arguments import AppArguments  # noqa: E402


def test_labels():
    assert page.split_labels(" a cat, a dog\n\na cat ,") == ["a cat", "a dog"]
    with pytest.raises(gradio.Error, match="at least one label"):
        page.split_labels(" ,\n")


@pytest.mark.parametrize("number", [0, -3, 17, 2.5, 10**12, float("nan"), None, True, "2"])
def test_odd_numbers_of_codes_are_refused(number):
    with pytest.raises(page.Refusal, match="must be a whole number from 1 to 16, got"):
        page.check_num_codes(number)


def test_what_the_page_shows_is_what_the_model_says(tiny_model, tiny_processor, images, tmp_path):
    images[1].save(tmp_path / "image.png")
    probabilities, heat_maps, additions, shared = page.explain(
        tiny_model, tiny_processor, str(tmp_path / "image.png"), "a cat, <b>dog</b>", 3
    )
    inputs = tiny_processor(images=images[1], text=["a cat", "<b>dog</b>"], return_tensors="pt")
    outputs, explanation = tiny_model(**inputs), tiny_model.explain(**inputs, top_k=3)
    expected = outputs.logits_per_image.softmax(dim=-1)[0].tolist()
    assert list(probabilities) == ["a cat", "<b>dog</b>"]
    assert list(probabilities.values()) == pytest.approx(expected, abs=1e-6)
    assert len(heat_maps) == 3 and heat_maps[0][0].shape == (64, 33, 3)
    codes = explanation.image_codes[0].tolist()
    assert [title.split(",")[0] for _, title in heat_maps] == [f"code {code}" for code in codes]
    best = max(probabilities, key=probabilities.get)
    place = list(probabilities).index(best)
    assert [row[:2] for row in additions[:3]] == [[best, code] for code in codes]
    assert [row[2] for row in additions[:3]] == pytest.approx(
        explanation.image_contributions[0, place].tolist(), abs=1e-4
    )
    assert shared[0][0] == best and shared[0][1] == pytest.approx(outputs.logits_per_image[0, place].item(), abs=1e-3)
    assert shared[0][3].startswith(f"{explanation.shared_codes[0, place, 0].item()} (+")
    with pytest.raises(gradio.Error, match="Drop an image"):
        page.explain(tiny_model, tiny_processor, None, "a cat", 3)


def test_the_page_answers_on_this_machine(tiny_model, tiny_processor, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    image = Image.fromarray(noise)  # transparent here and there
    image.save(tmp_path / "image.png")
    (tmp_path / "text.png").write_text("no image")
    inputs = tiny_processor(images=image, text=["a cat", "a dog"], return_tensors="pt")
    expected = tiny_model(**inputs).logits_per_image.softmax(dim=-1)[0].tolist()
    app = page.build_app(tiny_model, tiny_processor)
    assert not app.analytics_enabled
    _, url, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False, download_files=str(tmp_path / "answers"))
        answer = client.predict(handle_file(tmp_path / "image.png"), "a cat, a dog", 2, api_name="/explain")
        for name, number, message in (
            ("text.png", 2, "text.png is not an image of a known format"),
            ("image.png", 2.5, "must be a whole number from 1 to 16, got 2.5"),
        ):
            with pytest.raises(AppError, match=message):
                client.predict(handle_file(tmp_path / name), "a cat, a dog", number, api_name="/explain")
        with pytest.raises(AppError):  # the message is gradio's
            client.predict(handle_file(tmp_path / "image.png"), "a cat, a dog", 0, api_name="/explain")
    finally:
        app.close()
    probabilities, heat_maps, additions, shared = answer
    confidences = {row["label"]: row["confidence"] for row in probabilities["confidences"]}
    assert [confidences["a cat"], confidences["a dog"]] == pytest.approx(expected, abs=1e-5)
    assert len(heat_maps) == 2 and len(additions["data"]) == 4 and len(shared["data"]) == 2


def test_a_model_without_codes_is_refused(monkeypatch):
    monkeypatch.setattr(page, "load_model", lambda name, device: (object(), None))
    with pytest.raises(ValueError, match="model='clip' is a object, which has no codes"):
        page.run_app(AppArguments(model="clip"))
