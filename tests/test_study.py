"""The study: its controls, what it refuses, and all of it with tiny models on made-up drawings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from PIL import Image
from torch import nn

import run_scripts
from modeling_fdt import FDTModel
from run_scripts.arguments import parse_arguments
from run_scripts.evaluation.embedding import embed_captions, embed_images, load_model
from run_scripts.training import study
from run_scripts.training.arguments import STUDY
from run_scripts.training.baselines import POOLINGS, ControlConfig, ControlModel, pool_tokens
from tests.conftest import build_tiny_config


COLORS = [*("red", "green", "blue", "black", "white", "yellow", "gray", "orange")]
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}


def build_control(pooling: str, **kwargs) -> ControlModel:
    return ControlModel(ControlConfig(vision_config=RESNET, text_config=TOWER, pooling=pooling, **kwargs)).eval()


# The controls


@pytest.mark.parametrize("pooling", POOLINGS)
def test_control_compares_pairs(pooling, inputs):
    model = build_control(pooling, projection_dim=24).train()
    outputs = model(**inputs)
    assert outputs.image_embeds.shape == outputs.text_embeds.shape == (3, 24)
    assert outputs.logits_per_image.shape == (3, 3) and outputs.image_code_weights is None
    torch.testing.assert_close(outputs.text_embeds.norm(dim=-1), torch.ones(3))
    outputs.loss.backward()
    # torch leaves the gradient of what took no part at None.
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_clip_is_pooled_outputs_and_linear_projections(inputs):
    model = build_control("tower", projection_dim=24)
    features = model.vision_tower(inputs["pixel_values"]).last_hidden_state.mean(dim=(2, 3))
    expected = nn.functional.normalize(features @ model.vision_projection.weight.T, dim=-1)
    outputs = model(**inputs)
    torch.testing.assert_close(outputs.image_embeds, expected)
    states = model.text_tower(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    last = states[torch.arange(3), inputs["attention_mask"].sum(dim=1) - 1]
    expected = nn.functional.normalize(last @ model.text_projection.weight.T, dim=-1)
    torch.testing.assert_close(outputs.text_embeds, expected)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_pooling_is_over_valid_tokens(pooling):
    tokens, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    reduce = {"max": np.max, "mean": np.mean}[pooling]
    expected = np.stack([reduce(tokens[0].numpy(), axis=0), reduce(tokens[1, :2].numpy(), axis=0)])
    torch.testing.assert_close(pool_tokens(tokens, mask, pooling), torch.from_numpy(expected))
    torch.testing.assert_close(pool_tokens(tokens, None, pooling)[0], torch.from_numpy(expected[0]))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_caption_of_a_control_does_not_depend_on_padding(pooling, tiny_processor, captions):
    model = build_control(pooling)
    together = embed_captions(model, tiny_processor, captions).embeds
    alone = torch.cat([embed_captions(model, tiny_processor, [caption]).embeds for caption in captions])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)  # float32 sums in another order


def test_token_pooling_is_fdt_without_its_codebook():
    config = build_tiny_config(codebook_dim=16)
    towers = {"vision_config": config.vision_config, "text_config": config.text_config}
    control = ControlModel(ControlConfig(**towers, projection_dim=16, pooling="max"))
    shapes = {
        name.replace("_grounding.query_projection", "_projection"): parameter.shape
        for name, parameter in FDTModel(config).named_parameters()
    }
    assert shapes.pop("codebook") == (64, 16)
    assert shapes == {name: parameter.shape for name, parameter in control.named_parameters()}
    # Initialised alike: uniform within 1 / sqrt(16), of a standard deviation of 1 / sqrt(3 * 16).
    weights = control.vision_projection[4].weight
    assert weights.abs().max() <= 0.25 and 0.1 < weights.std() < 0.19


def test_control_survives_saving(tmp_path, tiny_processor, images, captions):
    model = build_control("max")
    model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    loaded, processor = load_model(str(tmp_path))
    assert isinstance(loaded, ControlModel) and loaded.config.pooling == "max"
    for embed, items in ((embed_images, images), (embed_captions, captions)):
        expected, found = embed(model, tiny_processor, items), embed(loaded, processor, items)
        torch.testing.assert_close(found.embeds, expected.embeds, rtol=0, atol=0)
        assert found.code_weights is None


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"pooling": "sum"}, "`pooling` must be one of"),
        ({"codebook_size": 8}, "no field"),
        ({"projection_dim": 0}, "codebook_dim"),
        ({"text_config": {"hiden_size": 8}}, "hidden_size"),
    ],
)
def test_control_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        ControlConfig(**fields)


# The study


def make_drawings(folder: Path) -> str:
    """Coloured squares, two to a category, in four splits."""
    random = np.random.default_rng(0)
    splits = {}
    for split, number in {"train": 8, "validation": 6, "test": 6, "test_held_out": 2}.items():
        rows = [
            {
                "concept": color.upper(),
                "caption": color,
                "captions": [color, f"a {color} square"],
                "category": COLORS.index(color) // 2,
                "image": Image.fromarray(
                    np.asarray(Image.new("RGB", (20, 20), color)) ^ random.integers(0, 64, (20, 20, 3), dtype=np.uint8)
                ),
            }
            for color in (COLORS[-number:] if split == "test_held_out" else COLORS[:number])
        ]
        splits[split] = Dataset.from_list(rows).cast_column("category", ClassLabel(names=[*"abcd"]))
    DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


def build_settings(folder: Path) -> dict:
    """A study of a control and FDT: two trials of 2 steps each, then 4 steps with two seeds."""
    fdt = {"codebook_size": 32, "codebook_dim": 8}
    return {
        "variants": {
            "CLIP": {
                "model": "control",
                "model_config": {"projection_dim": 8},
                "trials": [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}],
            },
            "FDT, max": {
                "model": "fdt",
                "model_config": fdt,
                "trials": [{"model_config": {"grounding_temperature": value}} for value in (1.0, 10.0)],
            },
        },
        "seeds": [1, 2],
        "tuning_seed": 0,
        "tuning_steps": 2,
        "model_config": {"vision_config": RESNET, "text_config": TOWER},
        "image_processor_config": {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
        "dataset": str(folder / "drawings"),
        "caption_column": "captions",
        "distinct_column": "concept",
        "augmentation": {"RandomHorizontalFlip": {"p": 0.5}},
        "output_dir": str(folder / "study"),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }


def main(argv: list[str]) -> None:
    study.run_study(*parse_arguments(STUDY, argv), command="python -m run_scripts.run_study")


def write_settings(folder: Path, settings: dict) -> list[str]:
    path = folder / "study.json"
    path.write_text(json.dumps(settings))
    return [str(path)]


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory) -> Path:
    """Where a whole study has run."""
    folder = tmp_path_factory.mktemp("study")
    make_drawings(folder / "drawings")
    main(write_settings(folder, build_settings(folder)))
    return folder


def read_runs(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (folder / "study" / "runs").glob("*.json")}


def test_every_run_is_one_file(study_folder):
    runs = read_runs(study_folder)
    tuned = {f"{name}-trial{trial}-seed0" for name in ("CLIP", "FDT_max") for trial in (0, 1)}
    repeated = {name for name in runs if not name.endswith("seed0")}
    assert tuned < set(runs) and len(repeated) == 4 and len(runs) == 8
    for name in tuned:
        assert set(runs[name]["results"]) == {"validation"}
        assert runs[name]["settings"]["training_arguments"]["max_steps"] == 2
    for name in repeated:
        run = runs[name]
        trials = [runs[f"{name.split('-')[0]}-trial{trial}-seed0"] for trial in (0, 1)]
        assert run["trial"] == int(study.validation_rsum(trials[1]) > study.validation_rsum(trials[0]))
        assert set(run["results"]) == {"validation", "test", "test_held_out"}
        assert run["settings"]["training_arguments"]["max_steps"] == 4 and run["cpu_seconds_per_step"] > 0
        assert run["command"].startswith("python -m run_scripts.run_study") and run["versions"]["torch"]
        assert (run["results"]["test"]["dead_codes"] is None) == (run["variant"] == "CLIP")
    assert len({run["weights_sha256"] for run in runs.values()}) == 8
    assert len({run["settings"]["data_sha256"] for run in runs.values()}) == 1
    rates = [runs[f"CLIP-trial{t}-seed0"]["settings"]["training_arguments"]["learning_rate"] for t in (0, 1)]
    temperatures = [runs[f"FDT_max-trial{t}-seed0"]["settings"]["model_config"] for t in (0, 1)]
    assert rates == [1e-3, 1e-2] and [fields["grounding_temperature"] for fields in temperatures] == [1.0, 10.0]


def test_tables_and_plot_show_every_variant(study_folder):
    text = (study_folder / "study" / "results.md").read_text()
    runs = [run for run in read_runs(study_folder).values() if not run["is_tuning"] and run["variant"] == "CLIP"]
    mean = 100 * np.mean([run["results"]["test"]["top_1"] for run in runs])
    std = 100 * np.std([run["results"]["test"]["top_1"] for run in runs], ddof=1)
    assert f"| CLIP | {mean:.1f} ± {std:.1f} |" in text
    assert text.count("| FDT, max |") == 7 and text.count("| CLIP |") == 5  # CLIP has no codes to count
    assert "6 drawings of 6 concepts" in text and "grounding_temperature 10.0" in text and text.count("**") == 4
    Image.open(study_folder / "study" / "study.png").verify()


def test_restart_skips_what_is_there(study_folder, monkeypatch):
    before, trained = read_runs(study_folder), []
    lost = next(name for name in before if name.startswith("FDT") and name.endswith("seed2"))
    (study_folder / "study" / "runs" / f"{lost}.json").unlink()
    train = study.train_variant
    monkeypatch.setattr(study, "train_variant", lambda study, run: trained.append(run.name) or train(study, run))
    main([str(study_folder / "study.json")])
    assert trained == [lost]
    after = read_runs(study_folder)
    # The same seed gives the same model, also in the middle of a restarted study.
    assert after[lost]["weights_sha256"] == before[lost]["weights_sha256"]
    assert after[lost]["results"] == before[lost]["results"]
    assert {name: run for name, run in after.items() if name != lost} == {k: v for k, v in before.items() if k != lost}


def test_results_of_other_settings_are_not_taken(study_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "train_variant", None)  # nothing is trained
    settings = {**build_settings(study_folder), "augmentation": None}
    with pytest.raises(ValueError, match=r"CLIP-trial0-seed0.json has other \['augmentation'\]"):
        main(write_settings(tmp_path, settings))


def test_data_order_does_not_depend_on_the_variant(study_folder, monkeypatch):
    seen = []
    collate = study.ContrastiveCollator.__call__

    def record(self, rows):
        inputs = collate(self, rows)
        seen.append((inputs["input_ids"], inputs["pixel_values"]))
        return inputs

    monkeypatch.setattr(study.ContrastiveCollator, "__call__", record)
    prepared = study.prepare_study(*parse_arguments(STUDY, [str(study_folder / "study.json")]))
    for variant in prepared.arguments.variants:
        study.train_variant(prepared, study.Run(variant, 0, 5, is_tuning=True))
    number = len(seen) // 2
    assert number >= 2
    for first, second in zip(seen[:number], seen[number:], strict=True):
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def refuse(**changes):
    return lambda settings: settings.update(changes)


def change_clip(**changes):
    return lambda settings: settings["variants"]["CLIP"].update(changes)


@pytest.mark.parametrize(
    "change, message",
    [
        (refuse(seeds=[]), "seeds must be"),
        (refuse(seeds=[1, 1]), "seeds must be"),
        (refuse(seeds=[0, 1]), "tuning_seed must be"),
        (refuse(tuning_steps=0), "tuning_steps must be"),
        (refuse(max_steps=-1), "max_steps must be"),
        (refuse(variants={}), "names of variants"),
        (refuse(augmentation={"RandomFlop": {}}), "RandomFlop"),
        (refuse(dataset="no/such/folder"), "no folder written by save_to_disk"),
        (refuse(caption_column="title"), "title"),
        (refuse(distinct_column="id"), "distinct_column"),
        (refuse(optimiser="sgd"), "optimiser"),
        (refuse(streaming=True), "streaming"),
        (lambda settings: settings["variants"].update({"FDT max": settings["variants"]["CLIP"]}), "names of variants"),
        (change_clip(trials=[{"learning_rate": 1e-3}]), "same number of trials"),
        (change_clip(trials=[{"learning_rat": 1}, {}]), "learning_rat"),
        (change_clip(trials=[{"seed": 7}, {}]), "seed"),
        (change_clip(trials=[{}, {"lr_scheduler_type": "cosin"}]), "cosin"),
        (change_clip(model="clip"), "model of variant"),
        (change_clip(model_config={"codebook_size": 8}), "no field"),
        (change_clip(name="CLIP"), "needs model, model_config and trials"),
    ],
)
def test_bad_study_is_refused_before_training(study_folder, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(study, "run_once", None)
    settings = build_settings(study_folder)
    change(settings)
    with pytest.raises(ValueError, match=message):
        main(write_settings(tmp_path, settings))


def test_missing_split_is_refused(study_folder, tmp_path):
    splits = study.load_from_disk(str(study_folder / "drawings"))
    del splits["test_held_out"]
    splits.save_to_disk(str(tmp_path / "drawings"))
    settings = {**build_settings(study_folder), "dataset": str(tmp_path / "drawings")}
    with pytest.raises(ValueError, match="test_held_out"):
        main(write_settings(tmp_path, settings))


def test_summary_by_hand():
    assert study.mean_and_deviation([1.0, 2.0, 6.0]) == (3.0, pytest.approx(7**0.5))
    assert study.mean_and_deviation([2.0]) == (2.0, 0.0)
    assert study.mean_and_deviation([None, None]) is None
    finals = {
        "A": [{"results": {"test": {"top_1": value, "active_per_image": 2.0}}} for value in (0.1, 0.2, 0.6)],
        "B": [{"results": {"test": {"top_1": value, "active_per_image": None}}} for value in (0.0, 0.0, 0.3)],
    }
    columns = {"top-1": "top_1"}
    assert study.format_variants(finals, "test", columns).splitlines() == [
        *("| variant | top-1 |", "|---|---:|", "| A | 30.0 ± 26.5 |", "| B | 10.0 ± 17.3 |"),
    ]
    assert study.format_variants(finals, "test", {"active": "active_per_image"}).splitlines()[2:] == [
        "| A | 2.0 ± 0.0 |"
    ]


@pytest.mark.parametrize("path", sorted(Path(run_scripts.__file__).with_name("configs").glob("study_*.json")), ids=str)
def test_every_study_is_readable(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, training_arguments = parse_arguments(STUDY, [str(path)])
    study.check_trials(arguments)
    assert Path(training_arguments.output_dir).name == path.stem and len(arguments.variants) >= 2
    assert set(arguments.augmentation) and training_arguments.max_steps > arguments.tuning_steps
