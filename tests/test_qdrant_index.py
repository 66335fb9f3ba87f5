"""A copy of an index in a Qdrant collection answers as the index does; qdrant-client's local mode is the server."""

import hashlib
import sys
from contextlib import closing
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from qdrant_client import QdrantClient, models

from run_scripts import index_images
from run_scripts.arguments import run_command
from run_scripts.benchmarks import benchmark_engines
from run_scripts.evaluation.embedding import Features
from run_scripts.search import qdrant_index
from run_scripts.search.arguments import IndexArguments, SearchArguments, split_address
from run_scripts.search.image_index import FileState, ImageIndex, IndexWriter
from run_scripts.search.qdrant_index import QdrantIndex, QdrantWriter
from run_scripts.search.search_index import NO_FILTERS, Filters
from run_scripts.search.searching import search_images
from tests.conftest import save_tiny_checkpoint


DAY = 1_767_225_600  # 2026-01-01 in UTC, in seconds since 1970
DIM, NUM_CODES, NUM_IMAGES = 16, 40, 50
CAPTIONS = [None, "two dogs", "a Dog, and a cat", "STRASSE", "straße 7", "dogs: two", "e-mail"]
FOLDERS = ["", "a/", "a/b/", "ab/", "c d/ü/"]


def make_features(num_items: int, seed: int) -> Features:
    """Random ones; the second half of the items repeats the first, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.nn.functional.normalize(torch.randn(num_items, DIM, generator=generator), dim=1)
    code_weights = torch.rand(num_items, NUM_CODES, generator=generator)
    code_weights = code_weights.where(code_weights >= code_weights.topk(5, dim=1).values[:, -1:], 0)
    half = num_items // 2
    embeds[half : 2 * half], code_weights[half : 2 * half] = embeds[:half], code_weights[:half]
    return Features(embeds, code_weights / code_weights.sum(dim=1, keepdim=True))


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def state(number: int, caption: str | None) -> FileState:
    return FileState(
        100, (DAY + number * 6 * 3600) * 10**9 - number % 2, caption
    )  # four a day, and odd ones just before


def open_writer(folder: Path, model_hash: str = "hash") -> IndexWriter:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    return IndexWriter(folder / "index", folder / "images", "model", model_hash)


def fill(writer: IndexWriter, features: Features) -> None:
    """Images with one to three files in different folders and with different captions."""
    numbers = range(len(features.embeds))
    files = {}
    for number in numbers:
        for copy in range(1 + number % 3):
            path = f"{FOLDERS[(number + copy) % len(FOLDERS)]}{number} {copy}.png"
            files[path] = state(number, CAPTIONS[(number * 5 + copy) % len(CAPTIONS)]), digest(number)
    writer.add([digest(number) for number in numbers], features, files)


def update(folder: Path, writer: IndexWriter, dense_index: str = "flat", codes: int | None = None) -> tuple[int, int]:
    writer.write_search_files(dense_index, codes)
    with QdrantWriter(address(folder), writer) as copy:
        return copy.update(dense_index, codes)


def address(folder: Path) -> str:
    return f"qdrant+file://{folder}/qdrant/scenes"


def assert_equal_answers(folder: Path, queries: Features, bys=("embeds", "codes"), filters=(NO_FILTERS,)) -> int:
    """Compare index and copy, and return the number of images found."""
    num_found = 0
    with closing(ImageIndex(folder / "index")) as index, closing(QdrantIndex(address(folder))) as copy:
        assert index.count() == copy.count()
        assert (index.model_name, index.model_hash) == (copy.model_name, copy.model_hash)
        assert index.is_current and copy.is_current
        for number in range(len(queries.embeds)):
            query = queries.select([number])
            for by in bys:
                for chosen in filters:
                    expected, hits = (one.query(query, by, 200, chosen) for one in (index, copy))
                    # Sums of float32 in another order.
                    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)
                    assert in_order(hits) == in_order(expected)
                    few = copy.query(query, by, 3, chosen)
                    assert [hit.score for hit in few] == pytest.approx([h.score for h in expected[:3]], abs=1e-5)
                    num_found += len(hits)
    return num_found


def in_order(hits: list) -> list[list]:
    """Files of the hits, best first; those of ties sorted."""
    groups, last = [], None
    for hit in hits:
        if last is None or last - hit.score > 1e-5:
            groups.append([])
        groups[-1].append(hit.files)
        last = hit.score
    return [sorted(group, key=str) for group in groups]


@pytest.mark.parametrize("codes_per_image", [None, 2])
def test_a_copy_answers_as_the_index(tmp_path, codes_per_image):
    with open_writer(tmp_path) as writer:
        fill(writer, make_features(NUM_IMAGES, seed=0))
        assert update(tmp_path, writer, codes=codes_per_image) == (NUM_IMAGES, 0)
    filters = [Filters(subfolder=name) for name in ("a", "a/", "./a/b", "c d/ü", "b", ".")]
    filters += [Filters(caption_word=word) for word in ("dog", "DOGS", "two dogs", "strasse", "e-mail", "mail", "do")]
    filters += [Filters(after=date(2026, 1, 3)), Filters(before=date(2026, 1, 3))]
    filters += [Filters("a", after=date(2026, 1, 3), before=date(2026, 1, 9))]
    filters += [Filters("a", "dog"), Filters("a/b", "two dogs")]
    assert assert_equal_answers(tmp_path, make_features(4, seed=1), filters=[NO_FILTERS, *filters]) > 1000
    with closing(QdrantIndex(address(tmp_path))) as copy:
        query = make_features(2, seed=1)
        # Images 0 to 7 are of the first two days; 8 is of the third's first second.
        assert len(copy.query(query, "embeds", 99, Filters(before=date(2026, 1, 3)))) == 8
        assert len(copy.query(query, "embeds", 99, Filters(after=date(2026, 1, 3)))) == NUM_IMAGES - 8
        found = [copy.query(query, "embeds", 99, chosen) for chosen in filters]
    assert [bool(hits) for hits in found] == [chosen not in (Filters("b"), Filters(None, "do")) for chosen in filters]
    for hit in found[-2]:  # one file passes both filters
        assert any(tmp_path / "images/a" in path.parents and "Dog" in (caption or "") for path, caption in hit.files)


def test_another_run_writes_what_has_changed(tmp_path, monkeypatch):
    features, queries = make_features(NUM_IMAGES, seed=0), make_features(2, seed=1)
    written = []
    make_point = qdrant_index._make_point

    def spy(image, *others):
        written.append(image.image_id)
        return make_point(image, *others)

    monkeypatch.setattr(qdrant_index, "_make_point", spy)
    with open_writer(tmp_path) as writer:
        fill(writer, features)
        assert update(tmp_path, writer) == (NUM_IMAGES, 0)
        written.clear()
        assert update(tmp_path, writer) == (0, 0) and written == []

        writer.add([], None, {"0 0.png": (FileState(100, (DAY - 1) * 10**9, CAPTIONS[0]), digest(0))})
        assert update(tmp_path, writer) == (1, 0) and written == [1]  # touched
        assert_equal_answers(tmp_path, queries, filters=[Filters(before=date(2026, 1, 1))])
        written.clear()
        writer.set_captions({"0 0.png": "a new caption"})
        assert update(tmp_path, writer) == (1, 0) and written == [1]
        assert_equal_answers(tmp_path, queries, filters=[NO_FILTERS, Filters(caption_word="new")])

        kept = [path for path in writer.file_states() if not path.startswith("a/")]
        num_removed = writer.keep_only(kept)
        num_written, num_deleted = update(tmp_path, writer)
        assert num_deleted == num_removed > 0 and num_written > 0  # some lost one file of several
        assert_equal_answers(tmp_path, queries, filters=[NO_FILTERS, Filters(subfolder="a")])

        added = make_features(3, seed=2)
        writer.add(
            [digest(-n) for n in (1, 2, 3)], added, {f"new {n}": (state(n, None), digest(-n)) for n in (1, 2, 3)}
        )
        assert update(tmp_path, writer) == (3, 0)
        assert_equal_answers(tmp_path, queries)
        assert update(tmp_path, writer, "hnsw") == (0, 0)
        with closing(QdrantClient(path=str(tmp_path / "qdrant"))) as client:  # another program writes, too
            foreign = models.PointStruct(id=10**6, vector={"embeds": [0.0] * DIM}, payload={"other": 1})
            client.upsert("scenes", [foreign])
        assert update(tmp_path, writer) == (0, 1)
        assert update(tmp_path, writer, codes=2) == (len(writer.digests()), 0)
        assert_equal_answers(tmp_path, queries)


def test_a_run_that_was_stopped_is_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(qdrant_index, "POINTS_PER_REQUEST", 20)
    call = qdrant_index._Connection.call
    upserts = []

    def stop(connection, method, **options):
        upserts.extend([method] if method == "upsert" else [])
        if len(upserts) == 2:
            raise KeyboardInterrupt
        return call(connection, method, **options)

    with open_writer(tmp_path) as writer:
        fill(writer, make_features(NUM_IMAGES, seed=0))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(qdrant_index._Connection, "call", stop)
            update(tmp_path, writer)
        with closing(QdrantIndex(address(tmp_path))) as copy:
            assert not copy.is_current and copy.count() == 20
        assert update(tmp_path, writer) == (NUM_IMAGES - 20, 0)
    assert_equal_answers(tmp_path, make_features(2, seed=1))


def test_a_model_without_codes(tmp_path):
    features = Features(make_features(6, seed=0).embeds, None)
    with open_writer(tmp_path) as writer:
        fill(writer, features)
        assert update(tmp_path, writer) == (6, 0)
    assert_equal_answers(tmp_path, make_features(2, seed=1), bys=["embeds"])
    with closing(QdrantIndex(address(tmp_path))) as copy:
        with pytest.raises(ValueError, match="by='codes' needs a model with codes"):
            copy.query(features, "codes", 3)
        with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
            copy.query(features, "embeds", 0)


def test_a_collection_of_others_is_refused(tmp_path):
    for name in ("one", "two"):
        with open_writer(tmp_path / name) as writer:
            fill(writer, make_features(4, seed=0))
            if name == "one":
                update(tmp_path, writer)
                continue
            with (
                pytest.raises(ValueError, match="copy_to='qdrant.*scenes' is a copy of another index than '.*two/"),
                QdrantWriter(address(tmp_path), writer),
            ):
                pass
    with open_writer(tmp_path / "other", "other hash") as writer:
        with pytest.raises(ValueError, match="did not make index='qdrant"), QdrantWriter(address(tmp_path), writer):
            pass
        with closing(QdrantIndex(address(tmp_path))):
            with (
                pytest.raises(ValueError, match="index='qdrant.* cannot be used: .*already accessed"),
                QdrantWriter(address(tmp_path), writer),
            ):
                pass
    with closing(QdrantClient(path=str(tmp_path / "qdrant"))) as client:
        client.create_collection("scenes of others", vectors_config={})
    foreign = address(tmp_path) + " of others"
    with pytest.raises(ValueError, match="is a collection that index_images did not make"):
        QdrantIndex(foreign)
    with pytest.raises(ValueError, match="is no collection yet; index_images --copy_to makes it"):
        QdrantIndex(address(tmp_path) + "_missing")
    with pytest.raises(ValueError, match="index='qdrant.http://127.0.0.1:9/scenes' cannot be used: .*refused"):
        QdrantIndex("qdrant+http://127.0.0.1:9/scenes")


def test_addresses(tmp_path):
    assert split_address("qdrant+http://host:6333/scenes") == ("http://host:6333", "scenes")
    assert split_address("qdrant+https://host/scenes") == ("https://host", "scenes")
    assert split_address("qdrant+file:///a/b/scenes") == ("/a/b", "scenes")
    assert split_address("qdrant+file:outputs/qdrant/scenes") == ("outputs/qdrant", "scenes")
    for wrong in ("http://host:6333/a", "qdrant+http://host:6333", "qdrant+http://host/a/b", "qdrant+http:///a"):
        with pytest.raises(ValueError, match="a Qdrant collection must be given as qdrant.http://HOST"):
            split_address(wrong)
    names = {"model": "model", "images": str(tmp_path)}
    with pytest.raises(ValueError, match="index must be a folder, .* give the collection as copy_to"):
        IndexArguments(**names, index="qdrant+http://host:6333/scenes")
    for refused in (
        lambda: IndexArguments(**names, index="index", copy_to="scenes"),
        lambda: SearchArguments(text="a", index="qdrant+ftp://host/scenes"),
    ):
        with pytest.raises(ValueError, match="a Qdrant collection must be given as"):
            refused()


def test_a_server_is_asked_with_the_key_of_the_environment(monkeypatch):
    options = []
    monkeypatch.setattr(qdrant_index, "QdrantClient", lambda **given: options.append(given))
    monkeypatch.setenv("QDRANT_API_KEY", "key")
    qdrant_index._Connection("qdrant+https://host:443/scenes")
    assert options == [{"url": "https://host:443", "api_key": "key", "check_compatibility": False}]


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    monkeypatch.delitem(sys.modules, "run_scripts.search.qdrant_index")
    argv = ["--index", "qdrant+http://host:6333/scenes", "--text", "a cat"]
    with pytest.raises(
        SystemExit, match=r"^error: a Qdrant collection needs qdrant-client: pip install -e '.\[qdrant\]'$"
    ):
        run_command(search_images, SearchArguments, argv=argv)


def test_the_benchmark_of_engines(tmp_path):
    images, queries = benchmark_engines.resample(make_features(20, seed=0), 30), make_features(3, seed=1)
    assert len(images.embeds) == len(images.code_weights) == 30
    np.testing.assert_allclose(images.embeds.norm(dim=1), 1, atol=1e-5)
    assert ((images.code_weights > 0).sum(dim=1) == 5).all()  # noise makes no code active
    expected = benchmark_engines.find_scores(images, queries)
    engines = {}
    for name in ("flat", "qdrant-local"):
        fill = benchmark_engines.fill_index if name == "flat" else benchmark_engines.fill_local
        engine = fill(*((images, tmp_path, name) if name == "flat" else (tmp_path,)))
        row = benchmark_engines.measure_engine(engine, queries, expected)
        assert row["embeds"]["recall"] == row["codes"]["recall"] == 1
        engines[name] = {"inserts_per_second": 30 / engine.insert_seconds, **row}
    blind = benchmark_engines.Engine(1.0, lambda query, by: [-1.0] * 9, lambda: None)
    assert benchmark_engines.measure_engine(blind, queries, expected)["codes"]["recall"] == 0
    table = benchmark_engines.format_engines({"30": engines})
    assert "| 30 | qdrant-local |" in table and "100.0%" in table
    names = {"scenes": "scenes", "output_dir": "out"}
    with pytest.raises(ValueError, match="engines must be among"):
        benchmark_engines.EngineBenchmarkArguments(**names, engines=["milvus"])
    with pytest.raises(ValueError, match="qdrant-local is filled from flat, which must precede it"):
        benchmark_engines.EngineBenchmarkArguments(**names, engines=["qdrant-local", "flat"])


def test_the_commands_copy_and_search(tokenizer, tmp_path, capsys):
    save_tiny_checkpoint(tmp_path / "model", tokenizer)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (36, 40, 3), dtype=np.uint8)
        (tmp_path / "images/sub").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{'sub/' * (number > 0)}{number}.png")
    names = {"model": str(tmp_path / "model"), "images": str(tmp_path / "images"), "index": str(tmp_path / "index")}
    for num_written in (3, 0):
        index_images.main(IndexArguments(**names, copy_to=address(tmp_path)))
        assert f"{address(tmp_path)}: {num_written} images written, 0 deleted" in capsys.readouterr().out
    printed = []
    for index in (names["index"], address(tmp_path)):
        search_images(SearchArguments(index=index, text="a cat", subfolder="sub"))
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and len(printed[0].splitlines()) == 2
