"""The study: its controls, what it refuses, and all of it with tiny models on made-up drawings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from torch import nn

import run_scripts
from modeling_fdt import FDTModel
from run_scripts.arguments import parse_arguments
from run_scripts.evaluation.arguments import RetrievalArguments
from run_scripts.evaluation.embedding import embed_captions, embed_images, load_model
from run_scripts.evaluation.retrieval import evaluate_retrieval
from run_scripts.run_study import main
from run_scripts.training import study
from run_scripts.training.arguments import STUDY
from run_scripts.training.baselines import POOLINGS, ControlConfig, ControlModel, pool_tokens
from run_scripts.training.study_report import format_evaluation
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
    right, left = (tiny_processor(text=captions, padding_side=side, return_tensors="pt") for side in ("right", "left"))
    embeds = [model.get_text_features(**inputs).text_embeds for inputs in (right, left)]
    torch.testing.assert_close(*embeds, rtol=0, atol=1e-5)
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
    """Coloured squares with their names, in three splits."""
    random = np.random.default_rng(0)
    splits = {}
    for split, number in {"train": 8, "validation": 6, "test": 6}.items():
        squares = [np.asarray(Image.new("RGB", (20, 20), color)) for color in COLORS[:number]]
        noisy = [square ^ random.integers(0, 64, square.shape, dtype=np.uint8) for square in squares]
        rows = [{"caption": c, "image": Image.fromarray(s)} for c, s in zip(COLORS[:number], noisy, strict=True)]
        splits[split] = Dataset.from_list(rows)
    DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


def build_config(folder: Path) -> dict:
    """A pretraining of 4 steps, evaluated at the second and the last."""
    return {
        "model_config": {
            "vision_config": RESNET,
            "text_config": {**TOWER, "max_position_embeddings": 16},
            "codebook_size": 32,
            "codebook_dim": 8,
        },
        "image_processor_config": {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
        "dataset": str(folder / "drawings"),
        "validation_split": "validation",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "augmentation": {"RandomResizedCrop": {"size": [16, 16]}},
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }


def build_settings(folder: Path) -> dict:
    """A study of a control and FDT: two trials of 2 steps each, then 4 steps with two seeds."""
    clip = {"model_type": "fdt_control", "projection_dim": 8, "codebook_size": None, "codebook_dim": None}
    return {
        "config": str(folder / "config.json"),
        "variants": {
            "CLIP": {
                "changes": {"model_config": clip},
                "trials": [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}],
            },
            "FDT, max": {
                "changes": {},
                "trials": [{"model_config": {"grounding_temperature": value}} for value in (1.0, 10.0)],
            },
        },
        "evaluations": {
            "Retrieval": {
                "task": "retrieval",
                "arguments": {"split": "test"},
                "columns": {"R@1": "image_to_text_R@1", "rsum": "rsum"},
            },
            "Codes": {
                "task": "codes",
                "arguments": {"split": "test"},
                "columns": {"active": "active_per_image"},
                "only": ["fdt"],
            },
        },
        "seeds": [1, 2],
        "tuning_seed": 0,
        "tuning_steps": 2,
        "output_dir": str(folder / "study"),
    }


def run(folder: Path, settings: dict) -> None:
    (folder / "study.json").write_text(json.dumps(settings))
    main(*parse_arguments(STUDY, [str(folder / "study.json")]))


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory) -> Path:
    """Where a whole study has run."""
    folder = tmp_path_factory.mktemp("study")
    make_drawings(folder / "drawings")
    (folder / "config.json").write_text(json.dumps(build_config(folder)))
    run(folder, build_settings(folder))
    return folder


def read_runs(folder: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("study/runs/*/result.json")}


def test_every_run_is_one_folder(study_folder):
    runs = read_runs(study_folder)
    tuned = {f"{name}-trial{trial}-seed0" for name in ("CLIP", "FDT_max") for trial in (0, 1)}
    repeated = {name for name in runs if not name.endswith("seed0")}
    assert tuned < set(runs) and len(repeated) == 4 and len(runs) == 8
    for name in tuned:
        assert runs[name]["evaluations"] == {} and [step for step, _ in runs[name]["validation"]] == [2]
    for name in repeated:
        found = runs[name]
        trials = [runs[f"{name.split('-')[0]}-trial{trial}-seed0"] for trial in (0, 1)]
        assert found["trial"] == int(study.score(trials[1]) > study.score(trials[0]))
        assert set(found["evaluations"]) == ({"Retrieval"} if found["variant"] == "CLIP" else {"Retrieval", "Codes"})
        assert [step for step, _ in found["validation"]] == [2, 4] and found["cpu_seconds_per_step"] > 0
        assert found["command"].startswith("python -m run_scripts.run_study") and found["versions"]["torch"]
    assert len({found["weights_sha256"] for found in runs.values()}) == 8
    rates = [runs[f"CLIP-trial{trial}-seed0"]["config"]["learning_rate"] for trial in (0, 1)]
    temperatures = [runs[f"FDT_max-trial{t}-seed0"]["config"]["model_config"]["grounding_temperature"] for t in (0, 1)]
    assert rates == [1e-3, 1e-2] and temperatures == [1.0, 10.0]


def test_what_a_run_says_is_what_its_model_gives(study_folder):
    folder = study_folder / "study" / "runs" / "FDT_max-trial0-seed0"
    name = next(name for name in read_runs(study_folder) if name.startswith("FDT") and name.endswith("seed1"))
    folder, found = study_folder / "study" / "runs" / name, read_runs(study_folder)[name]
    model, processor = load_model(str(folder))
    arguments = RetrievalArguments(model=str(folder), dataset=str(study_folder / "drawings"), split="test")
    metrics = evaluate_retrieval(model, processor, arguments).metrics
    assert found["evaluations"]["Retrieval"]["metrics"]["rsum"]["value"] == metrics["rsum"].value
    again = RetrievalArguments(model=str(folder), dataset=str(study_folder / "drawings"), split="validation")
    assert study.score(found) == pytest.approx(evaluate_retrieval(model, processor, again).metrics["rsum"].value)


def test_tables_and_plot_show_every_variant(study_folder):
    text = (study_folder / "study" / "results.md").read_text()
    runs = [found for found in read_runs(study_folder).values() if found["evaluations"] and found["variant"] == "CLIP"]
    values = [100 * found["evaluations"]["Retrieval"]["metrics"]["image_to_text_R@1"]["value"] for found in runs]
    assert f"| CLIP | {np.mean(values):.1f} ± {np.std(values, ddof=1):.1f} |" in text
    assert text.count("| CLIP |") == 5 and text.count("| FDT, max |") == 7  # CLIP has no codes to count
    assert "Difference from CLIP, seed by seed" in text and "| *chance* | 16.67% |" in text
    assert "| variant | step 2 | step 4 |" in text and "grounding_temperature 10.0" in text
    Image.open(study_folder / "study" / "study.png").verify()


def test_restart_skips_what_is_there(study_folder, monkeypatch):
    before, trained = read_runs(study_folder), []
    lost = next(name for name in before if name.startswith("FDT") and name.endswith("seed2"))
    (study_folder / "study" / "runs" / lost / "result.json").unlink()
    train = study.train
    monkeypatch.setattr(
        study, "train", lambda *args, **kwargs: trained.append(args[2].output_dir) or train(*args, **kwargs)
    )
    run(study_folder, build_settings(study_folder))
    assert [Path(folder).name for folder in trained] == [lost]
    after = read_runs(study_folder)
    # The same seed gives the same model, also in the middle of a restarted study.
    assert after[lost]["weights_sha256"] == before[lost]["weights_sha256"]
    assert after[lost]["evaluations"] == before[lost]["evaluations"]
    assert {name: found for name, found in after.items() if name != lost} == {
        name: found for name, found in before.items() if name != lost
    }


def test_results_of_another_config_are_not_taken(study_folder, monkeypatch):
    monkeypatch.setattr(study, "train", None)  # nothing is trained
    settings = {**build_settings(study_folder), "changes": {"augmentation": None}}
    with pytest.raises(ValueError, match=r"CLIP-trial0-seed0/result.json has other \['augmentation'\]"):
        run(study_folder, settings)


def refuse(**changes):
    return lambda settings: settings.update(changes)


def change_clip(**changes):
    return lambda settings: settings["variants"]["CLIP"].update(changes)


def change_codes(**changes):
    return lambda settings: settings["evaluations"]["Codes"].update(changes)


@pytest.mark.parametrize(
    "change, message",
    [
        (refuse(seeds=[]), "seeds must be"),
        (refuse(seeds=[1, 1]), "seeds must be"),
        (refuse(seeds=[0, 1]), "tuning_seed must be"),
        (refuse(tuning_steps=0), "tuning_steps must be"),
        (refuse(variants={}), "names of variants"),
        (refuse(config="no/such.json"), "no/such.json cannot be read"),
        (refuse(changes={"max_steps": None}), "max_steps"),
        (refuse(changes={"validation_split": None}), "validation_split"),
        (refuse(changes={"optimiser": "sgd"}), "optimiser"),
        (
            refuse(changes={"eval_steps": 3}, tuning_steps=3),
            "eval_steps must divide max_steps, got eval_steps=3 and",
        ),
        (
            refuse(changes={"eval_steps": 4}),
            "eval_steps must be at most tuning_steps, got eval_steps=4",
        ),
        (change_clip(trials=[{}, {"eval_strategy": "no"}]), "eval_strategy must be 'steps' or 'epoch', got 'no'"),
        (lambda settings: settings["variants"].update({"FDT max": settings["variants"]["CLIP"]}), "names of variants"),
        (change_clip(trials=[{"learning_rate": 1e-3}]), "same number of trials"),
        (change_clip(trials=[{"learning_rat": 1}, {}]), "learning_rat"),
        (change_clip(trials=[{"seed": 7}, {}]), "seed"),
        (change_clip(trials=[{}, {"lr_scheduler_type": "cosin"}]), "cosin"),
        (change_clip(name="CLIP"), "needs changes and trials"),
        (change_codes(task="code"), "not one of"),
        (change_codes(arguments={"batch_sise": 8}), "batch_sise"),
        (change_codes(columns=None, title=""), "needs task, arguments and columns"),
    ],
)
def test_bad_study_is_refused_before_training(study_folder, monkeypatch, change, message):
    monkeypatch.setattr(study, "run_once", None)
    settings = build_settings(study_folder)
    change(settings)
    with pytest.raises(ValueError, match=message):
        run(study_folder, settings)


def test_tables_by_hand():
    def result(value: float | None) -> dict:
        metrics = {"top_1": {"value": value, "chance": 0.25, "unit": "share"}}
        return {"evaluations": {} if value is None else {"Names": {"metrics": metrics}}}

    finals = {
        "A": [result(value) for value in (0.1, 0.2, 0.6)],
        "B": [result(value) for value in (0.0, 0.0, 0.3)],
        "C": [result(None)] * 3,
    }
    table = format_evaluation(finals, "Names", {"top-1": "top_1"}).splitlines()
    assert table == [
        "| variant | top-1 |",
        "|---|---:|",
        "| A | 30.0 ± 26.5 |",
        "| B | 10.0 ± 17.3 |",
        "| *chance* | 25.00% |",
    ]
    table = format_evaluation(finals, "Names", {"top-2": "top_2", "top-1": "top_1"}).splitlines()
    assert table[2] == "| A |  | 30.0 ± 26.5 |"  # no seed has a top-2
    table = format_evaluation(finals, "Names", {"top-1": "top_1"}, reference="A").splitlines()
    assert table[2:] == ["| B | -20.0 ± 10.0 |"]


@pytest.mark.parametrize("path", sorted(Path(run_scripts.__file__).with_name("configs").glob("study_*.json")), ids=str)
def test_every_study_is_readable(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (arguments,) = parse_arguments(STUDY, [str(path)])
    study.check_study(arguments)
    assert Path(arguments.output_dir).name == path.stem and len(arguments.variants) >= 2
