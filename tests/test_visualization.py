"""Statistics of codes over a stream, coherence and names, and the gallery that is written from them."""

import io
import json
import pickle
import random
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_from_disk
from datasets import Image as DatasetImage
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from modeling_fdt import FDTImageProcessor, FDTModel, FDTProcessor
from run_scripts.arguments import parse_arguments
from run_scripts.visualization import code_statistics, coherence, collection, figures, gallery, records
from run_scripts.visualization.arguments import ScreenshotArguments, VisualizationArguments
from run_scripts.visualization.code_statistics import ModalityStatistics, Sample, TopItems
from run_scripts.visualization.code_summary import CodeSummary
from run_scripts.visualization.coherence import CoherenceTest, Label
from run_scripts.visualization.collection import visualize
from run_scripts.visualization.records import HeatMap, MarkedWords
from tests.conftest import build_tiny_config


HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(2)>",
    "مرحبا بالعالم ‮desrever",
    "👩‍🚀 an astronaut & a 'cat' </bdi></html>",
]


def synthetic_weights(num_items: int, num_codes: int) -> torch.Tensor:
    """Sparse weights that all differ."""
    weights = torch.rand(num_items, num_codes)
    return weights * (weights > 0.7)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_top_items_are_those_of_a_sort(batch_size):
    weights = synthetic_weights(100, 20)
    top = TopItems(20, 5)
    present = set()
    for rows in torch.arange(100).split(batch_size):
        entered, left = top.update(weights[rows], rows.tolist())
        present |= {(code, rows[row].item()) for code, row in entered}
        present -= set(left)
    expected, order = weights.sort(dim=0, descending=True)
    assert torch.equal(top.weights, expected[:5].T)
    ids = torch.where(expected[:5].T > 0, order[:5].T, -1)
    assert torch.equal(top.ids, ids)
    assert present == {(code, item) for code in range(20) for item in ids[code].tolist() if item >= 0}


def test_an_item_that_comes_again_is_kept_once():
    top = TopItems(1, 3)
    top.update(torch.tensor([[0.5], [0.5], [0.1]]), [7, 7, 8])
    entered, left = top.update(torch.tensor([[0.5], [0.3], [0.2]]), [7, 9, 10])
    assert top.ids.tolist() == [[7, 9, 10]] and sorted(entered) == [(0, 1), (0, 2)] and left == [(0, 8)]


def test_an_earlier_item_of_equal_weight_stays():
    top = TopItems(1, 1)
    top.update(torch.tensor([[0.5]]), [1])
    assert top.update(torch.tensor([[0.5]]), [2]) == ([], [])


def stream(num_items: int) -> tuple[ModalityStatistics, list[int]]:
    statistics, forgotten = ModalityStatistics(50, 4), []
    for start in range(0, num_items, 100):
        ids = list(range(start, start + 100))
        forgotten += statistics.update(
            synthetic_weights(100, 50), ids, lambda row: "x" * 100, lambda row, codes: ["y" * 49 for _ in codes]
        )
    return statistics, forgotten


def test_memory_does_not_grow_with_the_data():
    few, _ = stream(1_000)
    many, forgotten = stream(20_000)
    assert many.num_items == 20_000 and len(forgotten) > 100
    # Twenty times the data: the same lists, larger only by the digits of numbers.
    assert len(pickle.dumps(many)) < 1.05 * len(pickle.dumps(few))
    kept = {item for code in range(50) for item, _ in many.top_of(code)}
    assert set(many.items) == kept and kept.isdisjoint(set(forgotten) - kept)
    assert set(many.places) == {(code, item) for code in range(50) for item, _ in many.top_of(code)}


def test_rates_and_shares_by_hand():
    image, text = ModalityStatistics(3, 2), ModalityStatistics(3, 2)
    describe, locate = (lambda row: row), (lambda row, codes: codes)
    image.update(torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0]]), [0, 1], describe, locate)
    text.update(torch.tensor([[0.25, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]), [0, 1, 2, 3], describe, locate)
    assert image.rates.tolist() == [1, 0.5, 0] and text.rates.tolist() == [0.25, 0, 0]
    share = code_statistics.image_share(image, text)
    assert share[0].item() == pytest.approx(0.75 / (0.75 + 0.0625)) and share[1] == 1 and share[2].isnan()


def test_a_sample_is_uniform_and_bounded():
    counts = Counter()
    for seed in range(400):
        sample = Sample(5, seed)
        for item in range(20):
            sample.add(item)
        assert len(set(sample.items)) == 5
        counts.update(sample.items)
    # Each item is expected in 100 of 400 samples, with a standard deviation of 8.7.
    assert all(60 < counts[item] < 140 for item in range(20))


def test_pairs_that_are_alike():
    cat, cats, dog = (Label(coherence.content_words(caption)) for caption in ("A cat", "the cat's 2 hats", "a dog"))
    assert cats.words == {"cat", "hats"}
    assert coherence.share_alike([cat, cats, dog]) == pytest.approx(1 / 3)
    same = [Label(frozenset(), "animal"), Label(frozenset(), "animal"), Label(frozenset(), "plant")]
    assert coherence.share_alike(same) == pytest.approx(1 / 3)


def test_coherence_against_random_draws():
    population = [Label(frozenset(), str(number % 10)) for number in range(500)]
    test = CoherenceTest(population, num_draws=300, seed=0)
    coherent = test([Label(frozenset(), "3")] * 6)
    assert coherent.share == 1 and coherent.p_value == pytest.approx(1 / 301)
    # Two random labels agree in about one of ten pairs; the mean of 300 draws of 15 pairs has a deviation of 0.005.
    assert coherent.baseline == pytest.approx(0.1, abs=0.02)
    different = test([Label(frozenset(), str(number)) for number in range(6)])
    assert different.share == 0 and different.p_value == 1
    assert test(population[:1]) is None
    chance = [test(random.Random(seed).sample(population, 6)).p_value for seed in range(200)]
    assert sum(p <= 0.05 for p in chance) / 200 < 0.12


def test_significance_is_of_the_images_where_there_are_any():
    low, high = coherence.Coherence(1, 0.1, 0.01), coherence.Coherence(0.1, 0.1, 0.5)

    def is_significant(image, text) -> bool:
        return CodeSummary(0, ["cat"], 1, 1, 1, 1, 0.5, image, text, [], [], []).is_significant

    assert is_significant(low, high) and is_significant(None, low)
    assert not is_significant(high, low) and not is_significant(None, None)


def test_distinctive_words():
    background = Counter({"face": 400, "red": 100, "heart": 20, "rare": 1})
    captions = [{"red", "heart"}, {"heart", "face"}, {"red", "face"}, {"heart", "unseen"}]
    words = coherence.distinctive_words([frozenset(words) for words in captions], background, 3)
    assert words[0] == "heart" and "face" not in words and "unseen" not in words
    assert coherence.distinctive_words([frozenset({"same"})] * 2, Counter(same=5), 3) == []
    assert coherence.distinctive_words([], Counter(), 3) == []


def test_heat_maps_survive_the_way_to_the_page():
    scores = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 4.0, 6.3]], [[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]])
    first, flat = records.encode_heat_maps(scores)
    assert first.grid == (2, 3) and first.lowest == 0 and first.highest == pytest.approx(6.3)
    # 64 levels: half a step is 1 / 126 of the extent.
    assert np.abs(records.decode_heat_map(first) * 6.3 - scores[0].numpy()).max() <= 6.3 / 126 + 1e-6
    assert flat.levels == "AAAAAA"


def test_marked_words_and_their_pieces():
    (marks,) = records.mark_words(torch.tensor([[-1.0, 0.9, 0.1, 0.5]]), [1])
    assert marks == MarkedWords("0915", 1)
    caption = records.Caption("It's", Label(frozenset()), 0, ["<s>", "it", "'s", "x"], [None, (0, 2), (2, 4), (5, 6)])
    parts = gallery.pieces(caption, marks)
    assert "".join(" " * part["space"] + part["text"] for part in parts) == "it's x"
    assert [part["is_winner"] for part in parts] == [True, False, False]
    special = gallery.pieces(caption, MarkedWords("9000", 0))
    assert special[0]["text"] == "start" and special[0]["is_special"] and special[1]["space"]


def test_thumbnails_are_upright_small_and_on_white(tmp_path):
    image = Image.new("RGBA", (400, 200), (255, 0, 0, 0))
    assert records.save_thumbnail(image, tmp_path / "1.webp", 100) == (100, 50)
    saved = Image.open(tmp_path / "1.webp").convert("RGB")
    assert saved.size == (100, 50) and min(saved.getpixel((50, 25))) > 250


def test_overlay_of_a_crop_leaves_the_rest_plain():
    white = Image.new("RGB", (40, 20), "white")
    mixed = figures.lay_over(white, (25, 0, 50, 100), HeatMap((1, 2), "A_", 0, 1))
    assert (mixed[:, :10] == 1).all() and (mixed[:, 30:] == 1).all()
    assert mixed[10, 11].sum() < 1 and (mixed[10, 29] == 1).all()  # the lowest score on the left
    assert figures.lay_over(white, (-50, -50, 200, 200), HeatMap((1, 1), "A", 0, 1)).max() < 1


def test_counts_of_charts():
    assert gallery.count_in_bins([0, 0.001, 0.0019, 0.01, 1], [0, 0.001, 0.01, 0.1]) == [1, 2, 1, 1]
    assert gallery.fit_edges([0, 0.03, 0.3]) == [0, 0.02, 0.05, 0.1, 0.2]
    assert gallery.fit_edges([1e-5, 0.3]) == [0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    assert gallery.find_neighbours([3, 5, 9]) == {3: (None, 5), 5: (3, 9), 9: (5, None)}
    assert gallery.count_in_tenths([0, 0.05, 0.1, 1]) == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert [gallery.percent(share) for share in (0, 0.0005, 0.012, 0.5)] == ["0%", "< 0.1%", "1.2%", "50%"]


# Below: one run of the script on made-up images with hostile captions.


def build_gallery(folder: Path, tokenizer) -> VisualizationArguments:
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    processor = FDTProcessor(
        FDTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer
    )
    model = FDTModel(build_tiny_config())
    with torch.no_grad():
        model.codebook[:3] = 0  # scores of 0 are never among the active ones here: dead codes
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    captions = HOSTILE + ["a red cat", "a red dog", "a cat on grass", "a dog on grass"] * 4
    rows = []
    for number, caption in enumerate(captions):
        size = [(32, 32), (30, 60), (60, 30)][number % 3]
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        rows.append({"image": Image.fromarray(pixels), "caption": caption, "kind": number % 2})
    dataset = Dataset.from_list(rows).cast_column("kind", ClassLabel(names=["<b>even</b>", "odd"]))
    DatasetDict(test=dataset).save_to_disk(str(folder / "data"))
    return VisualizationArguments(
        model=str(folder / "model"),
        dataset=str(folder / "data"),
        output_dir=str(folder / "out"),
        category_column="kind",
        batch_size=8,
        num_examples=4,
        num_draws=50,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer) -> VisualizationArguments:
    arguments = build_gallery(tmp_path_factory.mktemp("gallery"), tokenizer)
    visualize(arguments)
    return arguments


class Page(HTMLParser):
    """What a browser would read of a page: elements with attributes, links, and text outside of elements' names."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def test_every_link_of_the_gallery_has_its_file_and_none_leaves_it(run):
    out = Path(run.output_dir)
    paths = sorted(out.rglob("*.html"))
    assert len(paths) > 60
    for path in paths:
        for tag, attributes in Page(path).tags:
            for name in ("src", "href", "action"):
                target = attributes.get(name)
                if target is None or target in ("#main", "data:,"):
                    continue
                assert (path.parent / target).resolve().is_relative_to(out.resolve()), (path, tag, target)
                assert (path.parent / target).exists(), (path, tag, target)
    for path in [*out.glob("*.js"), *out.glob("*.css")]:
        assert not re.search(r"https?://|url\(|@import|fetch\(", path.read_text(encoding="utf-8"))
    shown = {path.stem for path in (out / "image").iterdir()}
    assert {path.stem for path in (out / "images").iterdir()} == shown


def test_hostile_captions_are_text(run):
    out = Path(run.output_dir)
    for number, caption in enumerate(HOSTILE):
        page = Page(out / "image" / f"{number}.html")
        assert caption in page.text
        scripts = [attributes for tag, attributes in page.tags if tag == "script"]
        assert scripts == [{"src": "../gallery.js", "defer": None}]
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    page = Page(out / "image" / "0.html")
    assert "<b>even</b>" in page.text and ("b", {}) in page.tags  # of the page itself, around numbers
    every_code = [Page(path) for path in (out / "code").iterdir()]
    assert all(
        [a for t, a in page.tags if t == "script"] == [{"src": "../gallery.js", "defer": None}] for page in every_code
    )
    data = (out / "data.js").read_text(encoding="utf-8")
    rows = json.loads(data.removeprefix("const GALLERY = ").removesuffix(";\n"))
    assert {caption for _, caption, _ in rows["images"]} >= set(HOSTILE)


def test_pages_tell_what_the_model_says(run):
    out, dataset = Path(run.output_dir), load_from_disk(run.dataset)["test"]
    model, processor = FDTModel.from_pretrained(run.model).eval(), FDTProcessor.from_pretrained(run.model)
    inputs = processor(images=dataset["image"][:], text=dataset["caption"][:], return_tensors="pt")
    outputs = model(**inputs)
    rows = pyarrow.parquet.read_table(out / "codes.parquet").to_pylist()
    assert [row["code"] for row in rows] == list(range(64))
    is_dead = (outputs.image_code_weights == 0).all(dim=0) & (outputs.text_code_weights == 0).all(dim=0)
    assert is_dead.any()
    for row in rows:
        code = row["code"]
        weights = outputs.image_code_weights[:, code]
        assert row["num_images"] == (weights > 0).sum() and row["image_rate"] == pytest.approx(
            (weights > 0).float().mean()
        )
        assert row["image_weight"] == pytest.approx(weights.mean().item(), abs=1e-6)
        order = weights.argsort(descending=True)[: min(4, row["num_images"])]
        assert row["top_image_rows"] == order.tolist()
        assert len(set(row["top_captions"])) == len(row["top_captions"])
        if row["num_captions"]:
            best = outputs.text_code_weights[:, code].argmax()
            assert row["top_captions"][0] == dataset[best.item()]["caption"]
        assert (row["image_share"] is None) == is_dead[code].item() != (out / "code" / f"{code}.html").exists()
    code = max(rows, key=lambda row: row["num_images"])["code"]
    canvases = [attributes for tag, attributes in Page(out / "code" / f"{code}.html").tags if tag == "canvas"]
    scores = model.explain(**inputs, codes=[code]).patch_scores[:, 0]
    expected = [records.encode_heat_maps(scores[item][None])[0].levels for item in rows[code]["top_image_rows"]]
    for canvas, levels in zip(canvases, expected, strict=True):
        assert (canvas["width"], canvas["height"]) == ("4", "4")
        # The forward passes differ in batch size, and rounding may move a score to the next level.
        mine = [records.LEVELS.index(sign) for sign in canvas["data-heat"]]
        assert np.abs(np.array(mine) - [records.LEVELS.index(sign) for sign in levels]).max() <= 1


def test_a_heat_map_lies_on_the_crop_of_an_image_that_is_not_square(run):
    page = Page(Path(run.output_dir) / "image" / "1.html")  # 60 x 30 pixels: the central half is seen
    maps = next(attributes for _, attributes in page.tags if attributes.get("class") == "maps")
    assert maps["style"] == "--w:60;--h:30;--x:25%;--y:0%;--bw:50%;--bh:100%"


def test_names_of_codes_no_better_than_chance_are_told_apart(run):
    out = Path(run.output_dir)
    rows = pyarrow.parquet.read_table(out / "codes.parquet").to_pylist()
    rows = [row for row in rows if row["name"] and row["image_coherence_p_value"] is not None]
    is_weak = {row["code"]: row["image_coherence_p_value"] > 0.05 for row in rows}
    assert is_weak
    data = (out / "data.js").read_text(encoding="utf-8")
    listed = {row[0]: row for row in json.loads(data.removeprefix("const GALLERY = ").removesuffix(";\n"))["codes"]}
    for row in rows:
        page = (out / "code" / f"{row['code']}.html").read_text(encoding="utf-8")
        heading = re.search("<h1>.*?</h1>", page).group()
        assert ("weak" in heading) == is_weak[row["code"]] != bool(listed[row["code"]][6])
        assert listed[row["code"]][5] == pytest.approx(row["image_coherence_p_value"], abs=1e-4)
    assert "× mean" in page and 'name="mode"' in page


def test_figures_show_the_codes_asked_for(run, tmp_path, tokenizer):
    names = {path.name for path in (Path(run.output_dir) / "figures").iterdir()}
    codes = names - {"codes_1.png", "codes_2.png"}  # six on a sheet
    assert len(codes) == 12 == len(names) - 2
    with Image.open(Path(run.output_dir) / "figures" / min(codes)) as figure:
        assert figure.width == 1800
    with Image.open(Path(run.output_dir) / "figures" / "codes_1.png") as sheet:
        assert sheet.width == 1560


def test_options_limit_pages_rows_and_figures(run, tmp_path):
    values = {**vars(run), "output_dir": str(tmp_path / "out"), "category_column": None, "streaming": True}
    values.update(max_pages=5, max_rows=10, figure_codes=[9], thumbnail_size=16)
    visualize(VisualizationArguments(**values))
    out = tmp_path / "out"
    assert len(list((out / "code").iterdir())) == 5 and {path.name for path in (out / "figures").iterdir()} == {
        "code_9.png",
        "codes_1.png",
    }
    assert all(int(path.stem) < 10 for path in (out / "image").iterdir())
    assert all(max(Image.open(path).size) == 16 for path in (out / "images").iterdir())
    index = "".join(Page(out / "index.html").text)
    assert "10 images with captions" in index and "5 codes have a page" in index
    assert "their captions have a word in common" in index


FEW_PAGES = {"max_pages": 3, "figure_codes": [9], "num_draws": 2}


def with_broken_rows(run, folder: Path) -> VisualizationArguments:
    """The data of `run` with rows between them of which each has another fault."""
    good = load_from_disk(run.dataset)["test"].cast_column("image", DatasetImage(decode=False)).to_list()
    image = good[0]["image"]
    floats = io.BytesIO()
    Image.fromarray(np.zeros((40, 40), np.float32)).save(floats, "TIFF")
    broken = [
        {"image": {"bytes": image["bytes"][:100], "path": None}, "caption": ["cut off"], "kind": 0},
        {"image": {"bytes": floats.getvalue(), "path": None}, "caption": ["no range of values"], "kind": 0},
        {"image": None, "caption": ["no image"], "kind": 0},
        {"image": image, "caption": None, "kind": 0},
        {"image": image, "caption": [], "kind": 0},
        {"image": image, "caption": ["", "  "], "kind": 0},
        {"image": image, "caption": ["no category"], "kind": -1},
        {"image": image, "caption": ["no category"], "kind": None},
    ]
    good = [{**row, "caption": ["", row["caption"]]} for row in good]
    features = Features(image=DatasetImage(), caption=List(Value("string")), kind=ClassLabel(names=["even", "odd"]))
    rows = [*broken[:2], *good[:3], *broken[2:], *good[3:]]
    DatasetDict(test=Dataset.from_list(rows, features=features)).save_to_disk(str(folder / "data"))
    values = {**vars(run), "dataset": str(folder / "data"), "output_dir": str(folder / "out"), "batch_size": 2}
    return VisualizationArguments(**values | FEW_PAGES)


def test_rows_that_cannot_be_used_are_left_out_by_name(run, tmp_path, caplog):
    arguments = with_broken_rows(run, tmp_path)
    visualize(arguments)
    left_out = dict(re.findall(r"left out row (\d+): (.*)", caplog.text))
    assert list(map(int, left_out)) == [0, 1, *range(5, 11)]
    assert [left_out[str(row)] for row in range(5, 9)] == [
        "image is empty",
        "caption holds None, no caption",
        "caption holds [], no caption",
        "caption holds ['', '  '], no caption",
    ]
    assert left_out["9"] == "kind holds -1, no category" and left_out["10"] == "kind holds None, no category"
    assert "8 of 28 rows were left out" in caplog.text
    rows, expected = (
        pyarrow.parquet.read_table(Path(folder) / "codes.parquet").to_pylist()
        for folder in (arguments.output_dir, run.output_dir)
    )
    # The same images and captions, under their numbers among all rows.
    numbers = [2, 3, 4, *range(11, 28)]
    for row, whole in zip(rows, expected, strict=True):
        assert row["top_captions"] == whole["top_captions"] and row["num_images"] == whole["num_images"]
        assert row["top_image_rows"] == [numbers[item] for item in whole["top_image_rows"]]


def test_a_gallery_appears_whole_or_not_at_all(run, tmp_path, monkeypatch):
    values = {**vars(run), "output_dir": str(tmp_path / "out"), "max_rows": 4} | FEW_PAGES
    with monkeypatch.context() as patch:
        patch.setattr(collection, "write_gallery", lambda *arguments: (_ for _ in ()).throw(OSError("full")))
        for _ in range(2):
            with pytest.raises(OSError, match="full"):
                visualize(VisualizationArguments(**values))
            assert not (tmp_path / "out").exists()
        (tmp_path / "out").mkdir()
        with pytest.raises(OSError, match="full"):
            visualize(VisualizationArguments(**values))
        assert not any((tmp_path / "out").iterdir())
    (tmp_path / "out/.unfinished/code").mkdir(parents=True)  # of a run that was killed
    visualize(VisualizationArguments(**values))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in Path(run.output_dir).iterdir()
    }


def test_data_without_a_usable_row_are_refused(run, tmp_path):
    arguments = with_broken_rows(run, tmp_path)
    arguments.max_rows = 2
    with pytest.raises(ValueError, match="no row that can be used among 2, the last for: .*mode 'F'"):
        visualize(arguments)
    assert not Path(arguments.output_dir).exists()


def test_wrong_arguments_are_refused(run, tmp_path):
    def refused(message: str, **changes) -> None:
        with pytest.raises(ValueError, match=message):
            values = {**vars(run), "output_dir": str(tmp_path / "new"), **changes}
            visualize(VisualizationArguments(**values))

    refused("output_dir must be a new or an empty folder, got", output_dir=run.output_dir)
    refused("config_name='two': .* was written by save_to_disk", config_name="two")
    refused("category_column='nothing' is no column", category_column="nothing")
    refused("figure_codes must be from 0 to 63, got \\[64\\]", figure_codes=[64])
    refused("num_examples must be at least 1, got 0", num_examples=0)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    clip = CLIPModel(CLIPConfig(text_config=small, vision_config={**small, "image_size": 32, "patch_size": 8}))
    clip.save_pretrained(tmp_path / "clip")
    FDTProcessor.from_pretrained(run.model).save_pretrained(tmp_path / "clip")
    refused("is a CLIPModel, which has no codes", model=str(tmp_path / "clip"))
    argv = ["--model", "m", "--dataset", "d", "--output_dir", "o"]
    (parsed,) = parse_arguments([VisualizationArguments], argv)
    assert parsed.split == "test" and parsed.max_rows is None and not parsed.streaming
    with pytest.raises(ValueError, match="give model and image together, got model='m', image=None"):
        ScreenshotArguments(gallery="g", output_dir="o", model="m")
