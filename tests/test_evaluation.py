"""The evaluation script: every task and preset on made-up data, its refusals, its results and its report."""

import hashlib
import importlib.util
import json
import subprocess
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from modeling_fdt import FDTImageProcessor, FDTModel, FDTProcessor
from run_scripts import run_evaluation
from run_scripts.arguments import parse_arguments
from run_scripts.evaluation import linear_probe, report, results, tasks
from run_scripts.evaluation.arguments import PRESETS, TASKS, EvaluationArguments, preset_arguments
from run_scripts.evaluation.inputs import describe_data, read_captions, read_labels
from run_scripts.evaluation.naming import all_concepts, evaluate_drawings
from run_scripts.evaluation.prompts import ensemble, load_class_names, load_templates
from tests.conftest import build_tiny_config
from tests.outside import outside_function


COLORS = [*("red", "green", "blue", "black", "white", "yellow", "gray", "orange", "pink", "brown", "purple", "navy")]


@pytest.fixture(scope="module")
def processor(tokenizer) -> FDTProcessor:
    image_processor = FDTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return FDTProcessor(image_processor=image_processor, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def model() -> FDTModel:
    torch.manual_seed(0)
    return FDTModel(build_tiny_config()).eval()


@pytest.fixture(scope="module")
def checkpoint(model, processor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def drawing(number: int) -> Image.Image:
    """A picture of noise that differs from number to number."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def drawings(tmp_path_factory) -> str:
    """Drawings of twelve colours, as the demo's data have them, saved with the splits train and test."""
    rows = [
        {"concept": color.upper(), "caption": color, "category": number % 2, "image": drawing(number)}
        for number, color in enumerate(COLORS)
    ]
    split = Dataset.from_list(rows).cast_column("category", ClassLabel(names=["even", "odd"]))
    folder = str(tmp_path_factory.mktemp("data") / "drawings")
    DatasetDict({"train": split, "test": split.select(range(2, 11))}).save_to_disk(folder)
    return folder


@pytest.fixture
def no_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def parse(argv: list[str]) -> EvaluationArguments:
    task = run_evaluation.find_task(argv)
    defaults = partial(run_evaluation.find_defaults, task)
    return parse_arguments([TASKS[task]], argv[1:], defaults)[0]


def evaluate(model, processor, task: str, *flags: str) -> results.Evaluation:
    """Run a task with a model that is loaded already."""
    arguments = parse([task, "--model", "unused", *flags])
    torch.manual_seed(arguments.seed)
    return tasks.EVALUATIONS[type(arguments)](model, processor, arguments)


def values(evaluation: results.Evaluation) -> dict[str, float]:
    return {name: metric.value for name, metric in evaluation.metrics.items()}


# Presets


def preset_cases() -> list[tuple[str, str]]:
    return [(preset, task) for preset, content in PRESETS.items() for task in content["tasks"]]


def stand_in(kinds: dict[str, str], num_classes: int) -> Dataset:
    """Fifteen rows with the columns and features of a preset."""
    answer = {"answer": Value("string"), "answer_confidence": Value("string"), "answer_id": Value("int64")}
    features = {
        "image": datasets.Image(),
        "class": ClassLabel(names=[f"class_{number}" for number in range(num_classes)]),
        "string": Value("string"),
        "number": Value("int64"),
        "caption_lines": Value("string"),
        "answers": List(answer),
    }
    cells = {
        "image": drawing,
        "class": lambda row: row % 3,
        "string": lambda row: f"what is {row % 4}?",
        "number": lambda row: row // 2,
        "caption_lines": lambda row: f"caption {row}\n" * (1 + row % 3) + f"last of {row}",
        "answers": lambda row: [
            {"answer": ("yes", "no")[row % 2], "answer_confidence": "maybe", "answer_id": n} for n in range(10)
        ],
    }
    rows = {column: [cells[kind](row) for row in range(15)] for column, kind in kinds.items()}
    return Dataset.from_dict(rows, features=Features({column: features[kind] for column, kind in kinds.items()}))


@pytest.mark.parametrize("preset, task", preset_cases())
def test_every_preset_fits_a_stand_in_of_its_layout(preset, task, model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_probe, "STRENGTHS", np.logspace(0, 2, 17))  # fewer to try
    content = PRESETS[preset]
    arguments = content["arguments"]
    flags = []
    if preset == "imagenet" and task == "zero-shot-classification":
        (tmp_path / "templates.txt").write_text("{}\n")  # instead of 80,000 prompts
        flags = ["--templates", str(tmp_path / "templates.txt")]
    if preset == "sugarcrepe":
        write_sugarcrepe(tmp_path)
        flags = ["--dataset", str(tmp_path), "--image_folder", str(tmp_path / "val2017")]
    else:
        split = stand_in(content["features"], 1000 if preset == "imagenet" else 3)
        names = {arguments[name] for name in ("split", "train_split", "validation_split") if name in arguments}
        DatasetDict({name: split for name in names}).save_to_disk(str(tmp_path / "data"))
        flags += ["--dataset", str(tmp_path / "data")]
    evaluation = evaluate(model, processor, task, "--preset", preset, *flags)
    assert evaluation.headline in evaluation.metrics
    if "metric" in arguments:
        assert evaluation.headline == arguments["metric"]


def test_every_argument_of_a_preset_is_a_flag_of_one_of_its_tasks():
    for preset, content in PRESETS.items():
        used = [set(preset_arguments(task, preset, None)) for task in content["tasks"]]
        assert set.union(*used) == set(content["arguments"]), preset


def write_sugarcrepe(folder: Path) -> None:
    """Two files of SugarCrepe with the pictures that they name."""
    (folder / "val2017").mkdir()
    drawing(0).save(folder / "val2017" / "000000000001.jpg")
    for kind in ("replace_obj", "swap_att"):
        entry = {"filename": "000000000001.jpg", "caption": "a dog", "negative_caption": f"a cat by {kind}"}
        (folder / f"{kind}.json").write_text(json.dumps({"0": entry, "1": entry}))


def test_sugarcrepe_is_read_by_kind(model, processor, tmp_path):
    write_sugarcrepe(tmp_path)
    flags = ["--preset", "sugarcrepe", "--dataset", str(tmp_path), "--image_folder", str(tmp_path / "val2017")]
    evaluation = evaluate(model, processor, "completeness", *flags)
    assert list(evaluation.metrics) == ["accuracy", "accuracy_replace_obj", "accuracy_swap_att"]
    assert evaluation.counts == {"images": 4, "swaps": 4}
    (tmp_path / "val2017" / "000000000001.jpg").unlink()
    with pytest.raises(ValueError, match="lacks 000000000001.jpg, which replace_obj.json names"):
        evaluate(model, processor, "completeness", *flags)


# The demo's table


def test_evaluation_gives_the_numbers_of_the_demo(model, processor, checkpoint, drawings, tmp_path, capsys):
    data = datasets.load_from_disk(drawings)
    concepts = all_concepts(data)
    expected, _ = evaluate_drawings(model, processor, data, "test", concepts, seed=42)
    (tmp_path / "names.txt").write_text("\n".join(name for name, _ in concepts.values()))
    (tmp_path / "templates.txt").write_text("{}")

    def run(task: str, *flags: str) -> dict[str, dict]:
        output = tmp_path / f"{task}.json"
        run_evaluation.main(
            [task, "--model", checkpoint, "--dataset", drawings, "--device", "cpu", "--output", str(output), *flags]
        )
        return json.loads(output.read_text())["metrics"]

    names = ["--class_names", str(tmp_path / "names.txt"), "--templates", str(tmp_path / "templates.txt")]
    zero_shot = run("zero-shot-classification", "--label_column", "caption", *names)
    retrieval, codes = run("retrieval"), run("codes")
    for metric in expected.values():
        metric["control"] = None  # the demo compares with its training drawings, which a task does not know of
    for ours in (
        {name: zero_shot[name] for name in ("top_1", "top_5")},
        {name: metric for name, metric in retrieval.items() if "R@" in name},
        {name: codes[name] for name in ("active_per_image", "similarity_from_shared_codes")},
    ):
        assert ours == {name: expected[name] for name in ours}
    assert "| **top_1** | **" in capsys.readouterr().out


# Zero-shot classification


def test_templates_of_all_kinds(tmp_path):
    assert load_templates("bare") == ["{}"] and load_templates("a {}") == ["a {}"]
    with pytest.raises(ValueError, match="exactly one {}"):
        load_templates("{} and {}")
    assert all(template.count("{}") == 1 for template in load_templates("simple"))
    (tmp_path / "templates.txt").write_text("a sketch of {}\n\nthe {} of old\n")
    assert load_templates(str(tmp_path / "templates.txt")) == ["a sketch of {}", "the {} of old"]
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("needs pip install --no-deps open_clip_torch")
    templates = load_templates("open_clip")
    assert len(templates) == 80 and all(template.count("{}") == 1 for template in templates)
    assert len(load_class_names("open_clip")) == 1000


@pytest.mark.parametrize(
    "text, message", [("", "is empty"), ("no place", "exactly one {}"), ("{} and {}", "exactly one {}")]
)
def test_bad_templates_are_refused(text, message, tmp_path):
    (tmp_path / "templates.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_templates(str(tmp_path / "templates.txt"))


def test_sources_that_are_no_file_are_refused():
    with pytest.raises(ValueError, match="templates='missing.txt' is no file and none of"):
        load_templates("missing.txt")
    with pytest.raises(ValueError, match="class_names='simple' is no file"):
        load_class_names("simple")


def test_ensemble_equals_that_of_open_clip():
    vectors = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Model:
        def encode_text(self, positions, normalize):
            assert normalize
            return F.normalize(vectors.flatten(0, 1)[positions], dim=-1)

    build = outside_function("open_clip/zero_shot_classifier.py", "build_zero_shot_classifier")
    texts = [f"{name}{template}" for name in "abcd" for template in "012"]
    classifier = build(
        Model(),
        tokenizer=lambda prompts: torch.tensor([texts.index(prompt) for prompt in prompts]),
        classnames=list("abcd"),
        templates=["{}0", "{}1", "{}2"],
        num_classes_per_batch=None,
    )
    torch.testing.assert_close(ensemble(vectors.flatten(0, 1), 3), classifier.T, rtol=0, atol=1e-12)


def test_zero_shot_by_embeddings_and_by_codes_equals_a_naive_twin(model, processor, drawings):
    evaluation = evaluate(
        model, processor, "zero-shot-classification", "--dataset", drawings, "--label_column", "category"
    )
    test, names = datasets.load_from_disk(drawings)["test"], ["even", "odd"]
    templates = load_templates("simple")
    with torch.no_grad():
        prompts = [processor(text=[t.format(name) for t in templates], return_tensors="pt") for name in names]
        prompts = [model.get_text_features(**inputs) for inputs in prompts]
        images = model.get_image_features(**processor(images=test["image"][:], return_tensors="pt"))
    for suffix, image, texts in (
        ("", images.image_embeds, [output.text_embeds for output in prompts]),
        ("_by_codes", images.image_code_weights, [output.text_code_weights for output in prompts]),
    ):
        classes = torch.stack([F.normalize(text, dim=-1).mean(dim=0) for text in texts])
        predictions = (F.normalize(image, dim=-1) @ F.normalize(classes, dim=-1).T).argmax(dim=1)
        right = predictions == torch.tensor(test["category"][:])
        assert evaluation.metrics[f"top_1{suffix}"].value == pytest.approx(right.double().mean().item())
        assert evaluation.metrics[f"top_1{suffix}"].chance == 0.5
    assert "top_5" not in evaluation.metrics  # of two classes


def test_clip_is_evaluated_without_codes(processor, drawings):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 49409, "eos_token_id": 49408},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    clip = CLIPModel(config).eval()
    evaluation = evaluate(
        clip, processor, "zero-shot-classification", "--dataset", drawings, "--label_column", "category"
    )
    assert set(evaluation.metrics) == {"top_1", "mean_per_class"}
    assert evaluate(clip, processor, "retrieval", "--dataset", drawings).counts["captions"] == 9
    with pytest.raises(ValueError, match="needs a model with codes"):
        evaluate(clip, processor, "codes", "--dataset", drawings)


def test_equal_class_names_tie_and_count_against_the_model(model, processor, drawings, tmp_path):
    (tmp_path / "names.txt").write_text("same\nsame\n")
    flags = ["--dataset", drawings, "--label_column", "category", "--class_names", str(tmp_path / "names.txt")]
    evaluation = evaluate(model, processor, "zero-shot-classification", *flags)
    assert evaluation.metrics["top_1"].value == 0 and evaluation.counts["equal_names"] == 1


def test_labels_are_checked():
    labels = Dataset.from_dict({"label": [0, 3, 1], "name": ["a", "b", "c"], "gap": ["a", None, "b"]})
    assert read_labels(labels, "name", ["c", "b", "a"]).tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match="row 1 is 3, none of 2 classes"):
        read_labels(labels, "label", ["x", "y"])
    with pytest.raises(ValueError, match="row 1 is None"):
        read_labels(labels, "gap", ["a", "b"])
    truth = Dataset.from_dict({"label": [True, False], "float": [1.0, 0.0]})
    assert read_labels(truth, "label", ["no", "yes"]).tolist() == [1, 0]
    assert read_labels(truth, "label", ["no", "yes"]).dtype == torch.long
    with pytest.raises(ValueError, match="row 0 is 1.0, none of 2 classes"):
        read_labels(truth, "float", ["no", "yes"])
    unlabelled = labels.select_columns(["label"]).cast_column("label", ClassLabel(num_classes=4))
    unlabelled = unlabelled.map(lambda row: {"label": -1}, keep_in_memory=True)
    with pytest.raises(ValueError, match="row 0 is -1"):
        read_labels(unlabelled, "label", list("abcd"))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--label_column", "size"], "holds Value.*int64.* without names: give class_names"),
        (["--label_column", "category", "--class_names", "NAMES"], "has 1 names, but label_column='category' has 2"),
        (["--label_column", "one"], "has 1 class; classification needs at least 2"),
        (["--label_column", "missing"], "label_column='missing' is no column"),
        (["--label_column", "category", "--metric", "top_5"], "metric='top_5' was not measured"),
        (["--label_column", "category", "--image_column", "size"], "'size' must hold images"),
    ],
)
def test_zero_shot_refusals(flags, message, model, processor, tmp_path):
    split = Dataset.from_list([{"image": drawing(0), "category": 1, "size": 5, "one": "only"}])
    split = split.cast_column("category", ClassLabel(names=["even", "odd"]))
    DatasetDict({"test": split}).save_to_disk(str(tmp_path / "data"))
    (tmp_path / "names.txt").write_text("even")
    flags = [str(tmp_path / "names.txt") if flag == "NAMES" else flag for flag in flags]
    with pytest.raises(ValueError, match=message):
        evaluate(model, processor, "zero-shot-classification", "--dataset", str(tmp_path / "data"), *flags)


# Folders of pictures


def captioned_folder(folder: Path, captions: list[str]) -> str:
    """An ImageFolder with metadata: one picture and one caption a row."""
    folder.mkdir()
    lines = ["file_name,caption"]
    for number, caption in enumerate(captions):
        drawing(number).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{caption}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def retrieve(model, processor, folder: str, *flags: str) -> results.Evaluation:
    return evaluate(model, processor, "retrieval", "--dataset", folder, "--split", "train", *flags)


def test_an_unreadable_picture_is_named(model, processor, tmp_path, no_cache):
    folder = captioned_folder(tmp_path / "folder", ["a", "b", "c"])
    unknown, cut = "is not an image of a known format", "cannot be decoded"
    half = (tmp_path / "folder" / "0.png").read_bytes()[:200]
    for content, reason in ((b"not a picture", unknown), (b"", unknown), (half, cut)):
        (tmp_path / "folder" / "1.png").write_bytes(content)
        with pytest.raises(ValueError, match=rf"image of row 1: .*1\.png {reason}"):
            retrieve(model, processor, folder)


def test_blank_captions_are_none(model, processor, tmp_path, no_cache):
    folder = captioned_folder(tmp_path / "folder", ["a", "", "c"])
    evaluation = retrieve(model, processor, folder)
    assert evaluation.counts == {
        "images": 3,
        "captions": 2,
        "images_without_caption": 1,
        "captions_equal_to_another": 0,
    }
    assert evaluation.metrics["text_to_image_R@1"].chance == pytest.approx(1 / 3)


def test_a_folder_without_captions_is_refused(model, processor, tmp_path, no_cache):
    with pytest.raises(ValueError, match="holds no caption in any of 2 rows"):
        retrieve(model, processor, captioned_folder(tmp_path / "blank", ["", ""]))
    (tmp_path / "bare").mkdir()
    drawing(0).save(tmp_path / "bare" / "0.png")
    with pytest.raises(ValueError, match="caption_column='caption' is no column"):
        retrieve(model, processor, str(tmp_path / "bare"))


def test_equal_captions_tie_unless_they_are_merged(model, processor, tmp_path, no_cache):
    folder = captioned_folder(tmp_path / "folder", ["same", "same", "same"])
    apart = retrieve(model, processor, folder)
    assert apart.counts["captions_equal_to_another"] == 2
    assert apart.metrics["image_to_text_R@1"].value == 0
    merged = retrieve(model, processor, folder, "--merge_equal_captions")
    assert merged.counts["captions"] == 1 and merged.metrics["image_to_text_R@1"].value == 1


def test_one_class_is_refused(model, processor, tmp_path, no_cache):
    (tmp_path / "folder" / "only").mkdir(parents=True)
    for number in range(5):
        drawing(number).save(tmp_path / "folder" / "only" / f"{number}.png")
    flags = ["--dataset", str(tmp_path / "folder"), "--split", "train"]
    # datasets itself gives a folder of one class no labels.
    with pytest.raises(ValueError, match="label_column='label' is no column"):
        evaluate(model, processor, "zero-shot-classification", *flags)
    rows = Dataset.from_dict({"image": [drawing(0)] * 5, "label": ["only"] * 5})
    DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="rows of at least 2 classes to fit on"):
        evaluate(model, processor, "linear-probe", "--dataset", str(tmp_path / "saved"))


def test_captions_of_every_form():
    cells = {"list": [["a", " "], []], "lines": ["a\nb\n", ""], "number": [1, 2], "empty": [None, " "]}
    dataset = Dataset.from_dict(cells)
    assert read_captions(dataset, "list") == [["a"], []]
    assert read_captions(dataset, "lines") == [["a", "b"], []]
    with pytest.raises(ValueError, match="row 0 holds 1, not captions"):
        read_captions(dataset, "number")
    with pytest.raises(ValueError, match="no caption in any of 2 rows"):
        read_captions(dataset, "empty")


# Arguments


def test_flags_go_before_the_preset_and_a_json_file_holds_the_same_names(tmp_path):
    arguments = parse(["zero-shot-classification", "--model", "m", "--preset", "cifar10", "--split", "train"])
    assert (arguments.dataset, arguments.split, arguments.image_column) == ("uoft-cs/cifar10", "train", "img")
    assert arguments.config_name == "plain_text"
    (tmp_path / "run.json").write_text(json.dumps({"model": "m", "preset": "cifar10", "dataset": "local"}))
    arguments = parse(["linear-probe", str(tmp_path / "run.json"), "--split", "validation"])
    assert (arguments.dataset, arguments.config_name, arguments.train_split) == ("local", None, "train")
    assert arguments.split == "validation"


@pytest.mark.parametrize(
    "argv, message",
    [
        (["retrieval", "--model", "m"], "give dataset, or a preset that names one"),
        (["retrieval", "--model", "m", "--dataset", "d", "--batch_size", "0"], "batch_size must be at least 1"),
        (["retrieval", "--model", "m", "--preset", "cifar10"], "is not one for retrieval; there are .'coco_5k'"),
        (
            [
                "completeness",
                "--model",
                "m",
                "--dataset",
                "d",
                "--word_columns",
                "w",
                "--negative_caption_column",
                "n",
            ],
            "either word_columns or negative_caption_column",
        ),
        (["linear-probe", "--model", "m", "--dataset", "d", "--few_shot", "0"], "must be at least 1"),
        (
            ["retrieval", "--model", "m", "--dataset", "d", "--output", "/"],
            "output must be a file that can be written",
        ),
        (
            ["retrieval", "--model", "m", "--dataset", "d", "--report", "/"],
            "report must be a file that can be written",
        ),
        (["report", "--results", "r.json", "--output", "/"], "output must be a file that can be written, got '/'"),
    ],
)
def test_bad_arguments_are_refused(argv, message):
    with pytest.raises(ValueError, match=message):
        parse(argv)


def test_unknown_tasks_flags_and_names_in_files_are_refused(tmp_path, capsys):
    for argv, message in (
        ([], "the task must be one of ['zero-shot-classification', "),
        (["translation"], "got 'translation'"),
        (["retrieval", "--model", "m", "--dataset", "d", "--label_column", "x"], "--label_column"),
    ):
        with pytest.raises(SystemExit) as end:
            parse(argv)
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.startswith("error: ") and message in said and said.count("\n") == 1
    (tmp_path / "run.json").write_text(json.dumps({"model": "m", "dataset": "d", "captions": "x"}))
    with pytest.raises(ValueError, match="captions"):
        parse(["retrieval", str(tmp_path / "run.json")])


# Results and report


class Tags(HTMLParser):
    """Checks that elements are closed in order."""

    void = {"meta", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_run_writes_its_results_and_a_report(checkpoint, drawings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--model", checkpoint, "--dataset", drawings, "--device", "cpu"]
    run_evaluation.main(["retrieval", *flags, "--report", "retrieval.html", "--seed", "7"])
    run_evaluation.main(["linear-probe", *flags, "--label_column", "category", "--few_shot", "1", "2"])
    paths = sorted(str(path) for path in Path("outputs/evaluation").glob("*.json"))
    name = Path(checkpoint).name
    assert [Path(path).name for path in paths] == [
        f"linear-probe_{name}_drawings_test.json",
        f"retrieval_{name}_drawings_test.json",
    ]
    record = json.loads(Path(paths[1]).read_text())
    weights = (Path(checkpoint) / "model.safetensors").read_bytes()
    assert record["model"] == {"name": checkpoint, "sha256": hashlib.sha256(weights).hexdigest()}
    assert record["seed"] == 7 and record["device"].startswith("cpu") and record["headline"] == "rsum"
    assert record["command"].startswith("python -m run_scripts.run_evaluation retrieval --model ")
    assert record["versions"]["torch"] == torch.__version__
    assert record["data"][0]["rows"] == 9 and len(record["data"][0]["sha256"]) == 64
    assert f"| **rsum** | **{record['metrics']['rsum']['value']:.1f}** |" in capsys.readouterr().out

    run_evaluation.main(["report", "--results", *paths, "--output", "all.html"])
    for page, number in (("retrieval.html", 1), ("all.html", 2)):
        text = Path(page).read_text()
        tags = Tags()
        tags.feed(text)
        assert not tags.open
        assert sum(tag == "section" for tag, _ in tags.seen) == number
        assert not any({"src", "href"} & set(attrs) for tag, attrs in tags.seen if tag != "a")  # self-contained
        assert "image to text R@10" in text and record["model"]["sha256"] in text and "<polyline" in text
    assert "Few shots" in text and 'href="#result-2"' in text


def test_results_of_one_task_are_told_apart_and_spreads_stand_beside_their_means(tmp_path):
    def result(split: str) -> dict:
        metric = {"chance": None, "unit": "share"}
        command = (
            f"python -m run_scripts.run_evaluation linear-probe --dataset d --split {split} --output {split}.json"
        )
        data = {"source": "d", "split": split, "rows": 3, "sha256": "1"}
        metrics = {"top_1_4_shot": metric | {"value": 0.5}, "top_1_4_shot_std": metric | {"value": 0.021}}
        fixed = {"task": "linear-probe", "headline": "top_1_4_shot", "counts": {}, "seed": 0, "commit": None}
        model = {"name": "m", "sha256": "0"}
        fixed |= {"model": model, "versions": {"python": "3"}, "device": "cpu", "charts": []}
        return {**fixed, "metrics": metrics, "data": [data], "command": command}

    records = [result("test"), result("validation")]
    assert report.tell_apart(records) == ["Linear probe: split test", "Linear probe: split validation"]
    assert report.tell_apart(records[:1]) == ["Linear probe"]
    report.write_report(records, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "± 2.1%" in text and "4-shot std" not in text and "<h2>Linear probe: split test</h2>" in text


def test_charts_are_drawn_to_scale():
    chart = {
        "title": "t",
        "kind": "line",
        "unit": "share",
        "log_x": True,
        "series": {"a": [(1, 0.0), (10, 0.5), (100, 1.0)]},
        "x_label": "",
        "y_label": "",
    }
    drawn = report.place_lines(chart)
    (x0, y0, _), (x1, y1, _), (x2, y2, label) = drawn["lines"][0]["dots"]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert (x0, y0) == (drawn["box"]["left"], drawn["box"]["bottom"]) and x2 == drawn["box"]["right"]
    assert label == "100: 100.0%"
    assert [label for _, label in drawn["x_ticks"]] == ["1", "10", "100"]  # of few points the points
    bars = report.place_bars({"unit": "number", "series": {"a": [("x", 2.0), ("y", 8.0)]}})
    assert [bar["length"] for bar in bars] == [25, 100]
    assert report.nice_ticks(0, 0.23) == [0, 0.05, 0.1, 0.15, 0.2, 0.25]
    assert report.log_ticks(1, 20) == [1, 2, 5, 10, 20] and report.log_ticks(1, 500) == [1, 10, 100]
    assert report.metric_words("image_to_text_R@10") == "image to text R@10"
    assert report.metric_words("top_1_16_shot_std") == "top-1, 16-shot std"


@pytest.mark.parametrize(
    "content, message",
    [
        (
            '{"config": "emoji.json", "results": {"test": {}}}',
            "demo.json holds no results of run_evaluation: it lacks",
        ),
        ("[]", "demo.json holds no results of run_evaluation: it lacks"),
        ("not json", "demo.json is no JSON"),
    ],
)
def test_a_report_of_other_files_is_refused(content, message, tmp_path):
    (tmp_path / "demo.json").write_text(content)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run_evaluation.main(["report", "--results", str(tmp_path / "demo.json"), "--output", str(tmp_path / "p.html")])


def test_names_in_a_report_are_escaped(tmp_path):
    metric = {"value": 0.5, "chance": None, "unit": "share"}
    chart = {"title": "<c>", "kind": "bar", "unit": "share", "series": {"a": [("<script>", 0.5)]}}
    record = {
        "task": "completeness",
        "headline": "accuracy",
        "metrics": {"accuracy": metric},
        "counts": {"swaps": 3, "none": 0},
        "model": {"name": "<m>", "sha256": "0"},
        "data": [{"source": "<d>", "split": "test", "rows": 3, "sha256": "1"}],
        "seed": 0,
        "command": "a < b",
        "commit": None,
        "versions": {"python": "3"},
        "device": "cpu",
        "charts": [chart],
    }
    report.write_report([record], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text and "<m>" not in text and "a &lt; b" in text
    assert "swaps: 3" in text and "none" not in text.split("<section")[1].split("</header>")[0]


def test_the_fingerprint_follows_content(tmp_path):
    for number in range(2):
        drawing(number).save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(2)]
    rows = {"image": paths, "caption": ["a", "b"], "other": [1, 2]}

    def fingerprint(**changes) -> str:
        dataset = Dataset.from_dict({**rows, **changes}).cast_column("image", datasets.Image())
        return describe_data("x", "test", dataset, ["image", "caption", None])["sha256"]

    first = fingerprint()
    assert fingerprint(other=[3, 4]) == first
    assert fingerprint(caption=["a", "c"]) != first and fingerprint(image=paths[::-1]) != first
    embedded = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
    assert fingerprint(image=embedded) == first  # the same pictures, kept in another way
    drawing(2).save(paths[1])
    assert fingerprint() != first


def test_weights_are_hashed_wherever_they_are(tmp_path, monkeypatch):
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"a")
    one = results.hash_weights(str(tmp_path))
    assert one == hashlib.sha256(b"a").hexdigest()
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"b")
    parts = hashlib.sha256(b"a").hexdigest() + hashlib.sha256(b"b").hexdigest()
    assert results.hash_weights(str(tmp_path)) == hashlib.sha256(parts.encode()).hexdigest()
    monkeypatch.setattr(results, "snapshot_download", lambda name, allow_patterns: str(tmp_path))
    assert results.hash_weights("hub/name") == results.hash_weights(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no safetensors file"):
        results.hash_weights(str(tmp_path / "empty"))


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "__file__", str(tmp_path / "run_scripts" / "evaluation" / "results.py"))
    assert results.find_commit() is None
    identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-q", "-m", "m"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    commit = results.find_commit()
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert results.find_commit() == f"{commit}-dirty"
