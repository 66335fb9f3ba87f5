# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The demo: its parts on made-up images, and, slow, all of it in a few steps."""

import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from matplotlib.figure import Figure
from PIL import Image

from run_scripts.demo import demo
from run_scripts.demo.arguments import DemoArguments
from run_scripts.evaluation.naming import all_concepts, evaluate_drawings, list_naming_rows
from run_scripts.evaluation.results import format_table
from run_scripts.evaluation.tagging import best_tags
from run_scripts.visualization.contact_sheets import (
    MISSED,
    RIGHT,
    WRONG,
    plot_drawings,
    plot_loss_curve,
    plot_scenes,
)


COLORS = [*("red", "green", "blue", "black", "white", "yellow", "gray", "orange", "pink", "brown", "purple", "navy")]


@pytest.fixture
def drawings() -> Dataset:
    rows = [
        {
            "concept": color.upper(),
            "caption": color,
            "category": number % 2,
            "image": Image.new("RGB", (32, 32), color),
        }
        for number, color in enumerate(COLORS)
    ]
    return Dataset.from_list(rows).cast_column("category", ClassLabel(names=["even", "odd"]))


def test_evaluation_of_an_untrained_model(tiny_model, tiny_processor, drawings):
    dataset = DatasetDict({"train": drawings.select(range(7)), "test": drawings})
    concepts = all_concepts(dataset)
    assert concepts["GREEN"] == ("green", 1) and len(concepts) == len(COLORS)
    metrics, predictions = evaluate_drawings(tiny_model, tiny_processor, dataset, "test", concepts, seed=0)
    assert len(predictions) == len(COLORS) and set(predictions) <= set(COLORS)
    right = sum(prediction == color for prediction, color in zip(predictions, COLORS, strict=True))
    assert metrics["top_1"]["value"] == pytest.approx(right / 12)
    assert metrics["top_1"]["control"] == pytest.approx(7 / 12)  # what the training drawings show is found again
    rows = list_naming_rows(metrics, drawings, len(concepts))
    assert rows["zero-shot top-1 among 12 names"]["chance"] == pytest.approx(1 / 12)
    assert rows["R@5 text to image, 12 images"]["chance"] == pytest.approx(5 / 12)
    assert rows["category accuracy (chance: the largest)"]["chance"] == 0.5
    assert 1 <= rows["active codes per image"]["value"] <= 64
    table = format_table("held out", rows)
    assert f"| zero-shot top-1 among 12 names | {right / 12:.1%} | 8.33% | 58.3% |" in table


def test_figures_are_images(tmp_path, drawings):
    plot_loss_curve([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2}], tmp_path / "loss.png")
    plot_drawings(drawings, ["red"] * len(drawings), [0, 3], tmp_path / "sheet.png")
    for name in ("loss.png", "sheet.png"):
        Image.open(tmp_path / name).verify()


def test_contact_sheet_tells_right_from_wrong_and_what_is_missed(tmp_path, drawings, monkeypatch):
    scenes = drawings.select(range(2)).add_column("concepts", [["fox", "pear"], ["dog"]])
    written = {}
    write = Figure.text
    monkeypatch.setattr(
        Figure, "text", lambda *args, **kwargs: (written.update({args[3]: kwargs}), write(*args, **kwargs))[1]
    )
    plot_scenes(scenes, [["fox", "apple"], ["dog"]], 90, tmp_path / "sheet.png")
    colors = {text: style["color"] for text, style in written.items() if "color" in style}
    assert colors == {"✓ fox": RIGHT, "✗ apple": WRONG, "pear": MISSED, "✓ dog": RIGHT}
    assert "2 of the 3 names given to these 2 unseen scenes are right, chosen from 90" in written
    assert written["pear"]["ha"] == "right" and Image.open(tmp_path / "sheet.png").width > 1000


def test_an_image_gets_as_many_tags_as_it_has_concepts(tiny_model, tiny_processor, drawings):
    scenes = drawings.select(range(3)).add_column("concepts", [["fox", "pear"], [], ["dog"]])
    names = ["dog", "fox", "pear"]
    tags = best_tags(tiny_model, tiny_processor, scenes, names, ["a {}"])
    assert [len(of_image) for of_image in tags] == [2, 0, 1]
    inputs = tiny_processor(
        images=scenes["image"][:], text=[f"a {name}" for name in names], return_tensors="pt", padding=True
    )
    best = tiny_model(**inputs).logits_per_image.argsort(dim=1, descending=True)
    assert tags[0] == [names[place] for place in best[0, :2]] and tags[2] == [names[best[2, 0]]]


def test_scenes_are_of_two_styles():
    with pytest.raises(ValueError, match="styles='all' is for images='drawings'"):
        DemoArguments(styles="all")


@pytest.mark.slow
@pytest.mark.parametrize("data", ["scenes", "drawings"])
def test_the_whole_demo_in_a_few_steps(data, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(demo.__file__).parents[2]))
    demo.run_demo(DemoArguments(images=data, smoke=True))
    (output_dir,) = (tmp_path / "outputs").iterdir()
    assert output_dir.name == {"scenes": "scenes_two_styles_smoke", "drawings": "emoji_two_styles_smoke"}[data]
    results = json.loads((output_dir / "results.json").read_text())["results"]
    for metrics in results.values():
        # What shared codes add can be more than all similarity, where different codes take from it.
        shares = {name: metric for name, metric in metrics.items() if metric["unit"] == "share"}
        assert all(0 <= shares[name]["value"] <= 1 for name in shares.keys() - {"similarity_from_shared_codes"})
    for name in ("loss_curve.png", "contact_sheet.png", "gallery/figures/codes_1.png"):
        Image.open(output_dir / name).verify()
    assert "fire in both" in (output_dir / "gallery" / "index.html").read_text()
    for folder in (output_dir, output_dir / "gallery"):
        assert "CC-BY-SA-4.0" in (folder / "ATTRIBUTION.md").read_text()
    printed = capfd.readouterr().out
    assert printed.count("%  ") == 10  # the labels that pipeline was asked for
    if data == "drawings":
        assert "zero-shot top-1 among 10 names" in printed and "active_per_image" in results["test"]
        return
    assert set(results) == {"test_combinations", "test", "false_captions"}
    assert "| tagging, mean average precision |" in printed and "| where the count is false |" in printed
    assert results["test"]["mean_average_precision"]["control"] is not None
    assert results["test"]["pointing_game"]["control"] is not None
