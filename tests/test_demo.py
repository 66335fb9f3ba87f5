# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The demo: its parts on made-up drawings, its configs, and, slow, all of it with a tiny model."""

import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from PIL import Image

from run_scripts import run_demo, run_zero_shot
from run_scripts.evaluation.naming import all_concepts
from run_scripts.evaluation.results import format_table


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
    metrics, predictions = run_demo.evaluate(tiny_model, tiny_processor, dataset, "test", concepts, seed=0)
    assert len(predictions) == len(COLORS) and set(predictions) <= set(COLORS)
    right = sum(prediction == color for prediction, color in zip(predictions, COLORS, strict=True))
    assert metrics["top_1"]["value"] == pytest.approx(right / 12)
    assert metrics["top_1"]["control"] == pytest.approx(7 / 12)  # what the training drawings show is found again
    rows = run_demo.table_rows(metrics, drawings, len(concepts))
    assert rows["zero-shot top-1 among 12 names"]["chance"] == pytest.approx(1 / 12)
    assert rows["R@5 text to image, 12 images"]["chance"] == pytest.approx(5 / 12)
    assert rows["category accuracy (chance: the largest)"]["chance"] == 0.5
    assert 1 <= rows["active codes per image"]["value"] <= 64
    table = format_table("held out", rows)
    assert f"| zero-shot top-1 among 12 names | {right / 12:.1%} | 8.33% | 58.3% |" in table


def test_figures_are_pictures(tmp_path, drawings):
    run_demo.plot_loss_curve([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2}], tmp_path / "loss.png")
    run_demo.plot_contact_sheet(drawings, ["red"] * len(drawings), [0, 3], tmp_path / "sheet.png")
    for name in ("loss.png", "sheet.png"):
        Image.open(tmp_path / name).verify()


def test_zero_shot_script_prints_every_label(tmp_path, tiny_model, tiny_processor, drawings, capsys):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    drawings[0]["image"].save(tmp_path / "picture.png")
    arguments = run_zero_shot.ZeroShotArguments(
        model=str(tmp_path), image=str(tmp_path / "picture.png"), labels=["red", "green"]
    )
    run_zero_shot.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[1] for line in lines) == ["green", "red"]
    assert sum(float(line.split()[0].rstrip("%")) for line in lines) == pytest.approx(100, abs=0.1)


@pytest.mark.slow
def test_the_whole_demo_with_a_tiny_model(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(run_demo.__file__).parents[1]))
    run_demo.main(run_demo.DemoArguments(smoke=True))
    output_dir = tmp_path / "outputs" / "emoji_two_styles_smoke"
    report = json.loads((output_dir / "results.json").read_text())
    results = report["results"]["test"]
    assert results["active_per_image"]["value"] >= 1
    assert all(0 <= result["value"] <= 1 for result in results.values() if result["unit"] == "share")
    for name in ("loss_curve.png", "contact_sheet.png"):
        Image.open(output_dir / name).verify()
    assert "fire in both" in (output_dir / "gallery" / "index.html").read_text()
    printed = capfd.readouterr().out
    assert "zero-shot top-1 among 10 names" in printed and printed.count("%  ") == 10
