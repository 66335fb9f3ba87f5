"""Indexing a folder of pictures and searching in it, also after a process was killed or files were damaged."""

import copy
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from modeling_fdt import FDTModel
from run_scripts import index_images
from run_scripts.benchmarks import benchmark_search
from run_scripts.evaluation import embedding
from run_scripts.evaluation.embedding import embed_captions, embed_images, hash_model, load_model
from run_scripts.search import image_index, indexing, nearest, search_index, searching
from run_scripts.search.arguments import IndexArguments, SearchArguments
from run_scripts.search.image_index import ImageIndex
from run_scripts.search.search_index import Filters
from run_scripts.search.searching import search_images
from tests.conftest import build_tiny_config, save_tiny_checkpoint


NUM_PICTURES = 7


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tokenizer) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_checkpoint(folder, tokenizer)
    return str(folder)


@pytest.fixture(scope="module")
def loaded(model_folder) -> tuple:
    return load_model(model_folder)


def save_noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Seven pictures in two folders, most with captions."""
    folder = tmp_path / "pictures"
    for number in range(NUM_PICTURES):
        save_noise(folder / ("sub/deep" if number > 3 else "") / f"{number}.png", seed=number)
    rows = [{"file_name": "0.png", "caption": "nought"}, {"file_name": "sub/deep/4.png", "caption": "vier, mit Komma"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    (folder / "sub/deep/metadata.csv").write_text('file_name,caption\n5.png,"five, with a comma"\n')
    (folder / "notes.txt").write_text("not a picture, and not taken for one")
    save_noise(folder / ".thumbnails/0.png", seed=99)
    return folder


@pytest.fixture
def run(loaded, model_folder, pictures, tmp_path):
    """Index the folder with batches of two, and report."""

    def run(**changes) -> indexing.IndexReport:
        arguments = {
            "model": model_folder,
            "images": str(pictures),
            "index": str(tmp_path / "index"),
            "batch_size": 2,
        }
        return indexing.index_images(*loaded, IndexArguments(**{**arguments, **changes}))

    return run


def files_of(folder: Path) -> set[tuple[str, str | None]]:
    """Path and caption of all files, found through search for something."""
    index = ImageIndex(folder)
    query = embedding.Features(torch.ones(1, 32), torch.ones(1, 64))
    found = [file for hit in index.query(query, "embeds", 100) for file in hit.files]
    assert len(found) == len(set(found))
    return {(path.name, caption) for path, caption in found}


EXPECTED = {
    ("0.png", "nought"),
    ("1.png", None),
    ("2.png", None),
    ("3.png", None),
    ("4.png", "vier, mit Komma"),
    ("5.png", "five, with a comma"),
    ("6.png", None),
}


def test_a_folder_is_indexed_with_its_subfolders_and_captions(run, tmp_path):
    assert run() == indexing.IndexReport(NUM_PICTURES, NUM_PICTURES, NUM_PICTURES, 0, {})
    assert files_of(tmp_path / "index") == EXPECTED


@pytest.mark.parametrize("dense_index", ["flat", "hnsw"])
def test_search_among_some_images(run, loaded, pictures, tmp_path, dense_index):
    run(dense_index=dense_index)
    index = ImageIndex(tmp_path / "index")
    query = embed_captions(*loaded, ["two dogs"])
    filters = [{"subfolder": "sub"}, {"subfolder": "su"}, {"caption_word": "Comma"}, {"caption_word": "com"}]
    filters += [{"subfolder": "sub/deep", "caption_word": "comma"}, {"subfolder": "./sub/"}]
    for by in ("embeds", "codes"):
        hits = index.query(query, by, 100)
        for options in filters:
            folder, word = options.get("subfolder"), options.get("caption_word")
            root = pictures / folder if folder else pictures
            expected = [
                hit
                for hit in hits
                if any(
                    root in path.parents
                    and (word is None or word.lower() in re.split(r"\W+", (caption or "").lower()))
                    for path, caption in hit.files
                )
            ]
            assert index.query(query, by, 100, filters=Filters(**options)) == expected
            assert index.query(query, by, 1, filters=Filters(**options)) == expected[:1]
    assert index.query(query, "embeds", 100, Filters(subfolder="sub")) and index.query(
        query, "embeds", 9, Filters(caption_word="COMMA")
    )


@pytest.mark.parametrize("changes", [{}, {"dense_index": "hnsw"}, {"codes_per_image": 3}], ids=str)
def test_search_equals_brute_force(run, loaded, pictures, tmp_path, changes):
    run(**changes)
    index = ImageIndex(tmp_path / "index")
    paths = sorted(pictures.glob("[0-9].png")) + sorted(pictures.glob("sub/deep/*.png"))
    images = [Image.open(path) for path in paths]
    stored = embed_images(*loaded, images)
    code_weights = stored.code_weights.double()
    if "codes_per_image" in changes:
        smallest = code_weights.topk(3, dim=1).values[:, -1:]
        code_weights = code_weights.where(code_weights >= smallest, 0)
        assert ((code_weights > 0).sum(dim=1) == 3).all()  # or this would compare nothing
    for query in (embed_images(*loaded, images[3:4]), embed_captions(*loaded, ["two dogs"])):
        expected = {
            "embeds": torch.cosine_similarity(query.embeds.double(), stored.embeds.double()),
            "codes": torch.cosine_similarity(query.code_weights.double(), code_weights),
        }
        for by, scores in expected.items():
            hits = index.query(query, by, top_k=4)
            order = scores.argsort(descending=True)[:4]
            order = order if by == "embeds" else order[scores[order] > 0]
            assert [hit.files[0][0] for hit in hits] == [paths[position] for position in order]
            # Batches of another size round the last bits of float32 in another way.
            assert [hit.score for hit in hits] == pytest.approx(scores[order].tolist(), abs=1e-5)
    assert len(index.query(query, "embeds", top_k=100)) == NUM_PICTURES
    assert len(index.query(query, "codes", top_k=100)) == (expected["codes"] > 0).sum() >= 3
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        index.query(query, "embeds", 0)


def test_equal_scores_are_in_the_order_of_the_index():
    scores = np.array([0.5, 1.0, 0.5, 0.5, 0.0])
    assert nearest.best(scores, 3).tolist() == [1, 0, 2]
    assert nearest.best(scores, 5).tolist() == [1, 0, 2, 3]  # what shares no code is not found


def test_another_run_embeds_only_what_is_new(run, pictures, tmp_path):
    run()
    assert run() == indexing.IndexReport(NUM_PICTURES, NUM_PICTURES, 0, 0, {})
    assert [path.name for path in (tmp_path / "index").glob("search_files-*")] == ["search_files-1"]

    save_noise(pictures / "new/7.png", seed=7)  # added
    save_noise(pictures / "1.png", seed=11)  # changed
    os.utime(pictures / "1.png", ns=(1, 1))
    (pictures / "2.png").unlink()  # removed
    (pictures / "3.png").rename(pictures / "three.png")  # moved
    (pictures / "sub/deep/metadata.csv").write_text("file_name,caption\n5.png,changed\n")
    os.utime(pictures / "sub/deep/6.png", ns=(1, 1))  # touched
    assert run() == indexing.IndexReport(NUM_PICTURES, NUM_PICTURES, 2, 2, {})
    expected = EXPECTED - {("2.png", None), ("3.png", None), ("5.png", "five, with a comma")}
    assert files_of(tmp_path / "index") == expected | {("7.png", None), ("three.png", None), ("5.png", "changed")}
    assert [path.name for path in (tmp_path / "index").glob("search_files-*")] == ["search_files-2"]


def test_other_search_files_need_no_embedding(run, tmp_path):
    run()
    assert run(codes_per_image=3, dense_index="hnsw").num_embedded == 0
    assert ImageIndex(tmp_path / "index")._inverted_index.nnz == 3 * NUM_PICTURES
    assert (tmp_path / "index" / "search_files-2").exists()


def test_search_files_of_an_older_version_are_written_anew(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(image_index, "SEARCH_FILES_VERSION", 1)
        run()
    with pytest.raises(
        ValueError, match="search files of an older version; run index_images again, which writes them"
    ):
        ImageIndex(tmp_path / "index")
    assert run().num_embedded == 0
    assert files_of(tmp_path / "index") == EXPECTED


def test_search_by_date(run, loaded, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(searching, "load_model", lambda name, device: loaded)
    days = {"0.png": "2026-04-30T23:59:59", "1.png": "2026-05-01T00:00:00", "2.png": "2026-05-31T23:59:59.9"}
    for path in pictures.rglob("*.png"):
        moment = datetime.fromisoformat(days.get(path.name, "2026-06-01T00:00:00") + "+00:00")
        os.utime(path, (moment.timestamp(), moment.timestamp()))
    run()
    for options, expected in (
        ({"after": "2026-05-01", "before": "2026-06-01"}, {"1.png", "2.png"}),
        ({"before": "2026-05-01"}, {"0.png"}),
        ({"after": "2026-06-01", "subfolder": "sub"}, {"4.png", "5.png", "6.png"}),
    ):
        search_images(SearchArguments(index=str(tmp_path / "index"), text="a cat", **options))
        printed = capsys.readouterr().out
        assert {Path(line.split()[2]).name for line in printed.splitlines()} == expected


def test_equal_files_are_one_picture(run, pictures, tmp_path):
    shutil.copy(pictures / "0.png", pictures / "copy in the same batch.png")
    run()
    shutil.copy(pictures / "0.png", pictures / "sub/later.png")
    assert run() == indexing.IndexReport(NUM_PICTURES + 2, NUM_PICTURES, 0, 0, {})
    (pictures / "0.png").unlink()
    assert run() == indexing.IndexReport(NUM_PICTURES + 1, NUM_PICTURES, 0, 0, {})
    rest = {("copy in the same batch.png", None), ("later.png", None)}
    assert files_of(tmp_path / "index") == EXPECTED - {("0.png", "nought")} | rest


def test_unreadable_files_are_left_out_and_listed(run, pictures, tmp_path, caplog):
    (pictures / "empty.png").touch()
    (pictures / "text.jpg").write_text("no picture")
    (pictures / "cut.png").write_bytes((pictures / "0.png").read_bytes()[:2000])
    (pictures / "float.tiff").unlink(missing_ok=True)
    Image.fromarray(np.zeros((40, 40), np.float32)).save(pictures / "float.tiff")
    (pictures / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(pictures / "pipe.png")  # to read it would never end
    (pictures / "terminal.png").symlink_to("/dev/zero")
    (pictures / "line\nbreak.png").touch()
    (pictures / os.fsdecode(b"latin-\xe9.png")).write_bytes((pictures / "0.png").read_bytes())
    save_noise(pictures / "later broken.png", seed=8)
    report = run()
    names = {"empty.png", "text.jpg", "cut.png", "float.tiff", "gone.png", "'latin-\\udce9.png'"}
    names |= {"pipe.png", "terminal.png", "line\nbreak.png"}
    assert set(report.unreadable) == names
    assert all(report.unreadable[name].endswith("not a regular file") for name in ("pipe.png", "terminal.png"))
    assert report.num_files == report.num_images == NUM_PICTURES + 1
    assert all(name.replace("\n", "\\n") in caplog.text for name in names)
    (pictures / "later broken.png").write_text("broken now")
    shutil.copy(pictures / "1.png", pictures / "empty.png")  # repaired
    report = run()
    assert set(report.unreadable) == names - {"empty.png"} | {"later broken.png"}
    assert files_of(tmp_path / "index") == EXPECTED | {("empty.png", None)}


def test_a_folder_without_pictures_is_refused_and_nothing_forgotten(run, pictures, tmp_path):
    run()
    kept = tmp_path / "kept"
    pictures.rename(kept)
    pictures.mkdir()
    with pytest.raises(ValueError, match="holds no file with an extension of"):
        run()
    (pictures / "0.png").write_text("no picture")
    with pytest.raises(ValueError, match="none of 1 files can be read"):
        run()
    shutil.rmtree(pictures)
    with pytest.raises(ValueError, match="is no folder"):
        run()
    kept.rename(pictures)
    assert run().num_embedded == 0
    assert files_of(tmp_path / "index") == EXPECTED


def test_another_folder_is_refused_but_a_moved_one_is_not(run, pictures, tmp_path):
    run()
    save_noise(tmp_path / "other/a.png", seed=50)
    with pytest.raises(ValueError, match="is not the folder that index=.* holds"):
        run(images=str(tmp_path / "other"))
    pictures.rename(tmp_path / "moved")
    assert run(images=str(tmp_path / "moved")) == indexing.IndexReport(NUM_PICTURES, NUM_PICTURES, 0, 0, {})
    query = embedding.Features(torch.ones(1, 32), None)
    hits = ImageIndex(tmp_path / "index").query(query, "embeds", 1)
    assert hits[0].files[0][0].exists()


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("metadata.csv", "file_name,text\n0.png,x\n", "caption_column='caption': .* lacks 'caption', it has"),
        ("metadata.jsonl", '{"caption": "x"}\n', "lacks 'file_name'"),
        ("metadata.jsonl", '{"file_name": "0.png", "caption": ["x"]}\n', "must have file names and captions of text"),
        ("metadata.csv", "caption,file_name\nx\n", "must have file names and captions of text"),
        ("metadata.jsonl", "{broken\n", "metadata.jsonl cannot be read"),
        ("metadata.jsonl", "5\n", "must have an object with file_name in every line, got 5"),
        ("metadata.jsonl", "[" * 100_000, "metadata.jsonl cannot be read"),
        ("metadata.jsonl", '{"file_name": "0.png", "caption": "\\ud800"}\n', "file names and captions of text"),
        ("metadata.csv", "file_name,text\n0.png,x,y\n", "lacks 'caption'"),
    ],
)
def test_wrong_metadata_are_refused(run, pictures, name, text, message):
    (pictures / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        run()


def test_the_caption_column_has_a_name(run, pictures, tmp_path):
    for path in [pictures / "metadata.jsonl", pictures / "sub/deep/metadata.csv"]:
        path.write_text(path.read_text().replace("caption", "text"))
    run(caption_column="text")
    assert files_of(tmp_path / "index") == EXPECTED


def test_one_process_writes_at_a_time(run, tmp_path):
    run()
    with FileLock(tmp_path / "index" / "lock"):
        with pytest.raises(ValueError, match="is being written by another process"):
            run()
        assert files_of(tmp_path / "index") == EXPECTED  # search goes on
    run()


def test_another_model_is_refused(run, model_folder, loaded, pictures, tmp_path, monkeypatch):
    run()
    model, processor = loaded
    assert hash_model(*load_model(model_folder)) == hash_model(model, processor)
    renamed = copy.deepcopy(model)
    renamed.config.auto_map, renamed.config.architectures = {"AutoModel": "other.Name"}, None
    assert hash_model(renamed, processor) == hash_model(model, processor)  # it computes the same
    warmer = FDTModel(build_tiny_config(grounding_temperature=6.0))  # other in its configuration alone
    warmer.load_state_dict(model.state_dict())
    trained = copy.deepcopy(model)  # in one weight
    with torch.no_grad():
        next(trained.parameters()).view(-1)[0] += 1e-3
    darker = copy.deepcopy(processor)  # in its image processing alone
    darker.image_processor.image_mean = [0.0, 0.0, 0.0]
    arguments = IndexArguments(model="other", images=str(pictures), index=str(tmp_path / "index"))
    for other in ((warmer, processor), (trained, processor), (model, darker)):
        with pytest.raises(ValueError, match="model='other' .* did not make index=.* make a new index"):
            indexing.index_images(*other, arguments)
    monkeypatch.setattr(searching, "load_model", lambda name, device: (warmer, processor))
    arguments = SearchArguments(index=str(tmp_path / "index"), text="a cat", model="moved")
    with pytest.raises(ValueError, match="model='moved' .* did not make index="):
        search_images(arguments)
    monkeypatch.setattr(searching, "load_model", lambda name, device: loaded)
    search_images(arguments)


def test_damaged_search_files_are_refused_and_written_anew(run, tmp_path):
    run()
    for name in ("embeds.faiss", "codes.npz", "ids.npy"):
        path = next((tmp_path / "index").glob(f"search_files-*/{name}"))
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"is damaged: .*{name} is not as it was written; run index_images again"):
            ImageIndex(tmp_path / "index")
        assert run().num_embedded == 0
        assert files_of(tmp_path / "index") == EXPECTED


def test_a_damaged_database_is_refused(run, tmp_path):
    run()
    path = tmp_path / "index" / "images.sqlite3"
    whole = path.read_bytes()

    def refused(message: str, *calls) -> None:
        for call in calls:
            with pytest.raises(ValueError, match=message):
                call()

    path.write_bytes(b"not a database " * 1000)
    refused("is damaged: file is not a database; make a new one", run, lambda: ImageIndex(tmp_path / "index"))
    path.write_bytes(whole[: len(whole) // 2])
    refused("is damaged: .*; make a new one", run)
    path.write_bytes(whole)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    refused("holds no index of format 2", run, lambda: ImageIndex(tmp_path / "index"))
    path.write_bytes(whole)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE images SET embeds = zeroblob(128) WHERE id = 3")
    refused("is damaged: image 3; make a new one", lambda: run(dense_index="hnsw"))
    shutil.rmtree(tmp_path / "index")
    refused("holds no index", lambda: ImageIndex(tmp_path / "index"))


def test_a_damaged_database_never_answers_wrongly(run, loaded, pictures, tmp_path):
    run()
    path = tmp_path / "index" / "images.sqlite3"
    whole = path.read_bytes()
    query = embed_images(*loaded, [Image.open(pictures / "0.png")])
    expected = ImageIndex(tmp_path / "index").query(query, "embeds", 10)
    places = [place for place in range(0, len(whole), 7) if whole[place] != 0]
    places = places[:: max(len(places) // 120, 1)]
    for word in (b"nought", b"vier", b"sub/deep", b"search_files", str(pictures).encode()):
        places.append(whole.index(word) + 1)
    shutil.copytree(tmp_path / "index", tmp_path / "kept")
    outcomes = []
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0b101
        path.write_bytes(damaged)
        try:
            answered = ImageIndex(tmp_path / "index").query(query, "embeds", 10)
        except ValueError as error:
            outcomes.append("refused")
            assert "make a new one" in str(error) or "cannot be used" in str(error) or "run index_images" in str(error)
        else:
            outcomes.append("answered")
            assert answered == expected, place
        try:
            run(codes_per_image=3)
        except ValueError:
            continue
        finally:
            shutil.rmtree(tmp_path / "written", ignore_errors=True)
            (tmp_path / "index").rename(tmp_path / "written")
            shutil.copytree(tmp_path / "kept", tmp_path / "index")
        assert ImageIndex(tmp_path / "written").query(query, "embeds", 10) == expected, place
    assert set(outcomes) == {"refused", "answered"}


def test_an_index_that_cannot_be_opened_is_refused(run, tmp_path, monkeypatch):
    (tmp_path / "index").write_text("a file")
    with pytest.raises(ValueError, match="index=.* cannot be written: .*exists"):
        run()
    (tmp_path / "index").unlink()
    (tmp_path / "index/images.sqlite3").mkdir(parents=True)
    with pytest.raises(ValueError, match="index=.* cannot be used: unable to open database file"):
        run()
    with pytest.raises(ValueError, match="index=.* cannot be used: "):
        ImageIndex(tmp_path / "index")
    (tmp_path / "index/images.sqlite3").rmdir()
    run()  # the lock was given back


# Each child is killed at another point: within the second batch, within its transaction, while the search files are
# written, and before the database names them.
KILLED = """
import os, signal, sys
from run_scripts.search import image_index, indexing
from run_scripts.search.arguments import IndexArguments
from run_scripts.evaluation.embedding import load_model

model, images, index = sys.argv[1:]

def killing(function, at_call):
    calls = []
    def wrapped(*arguments, **options):
        calls.append(options)
        if len(calls) == at_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return wrapped

def kill_in_batch():
    indexing.embed_inputs = killing(indexing.embed_inputs, 2)

def kill_in_transaction():  # facts are set when an index is made, when it is opened, and at the end of each batch
    image_index.IndexWriter._set_facts = killing(image_index.IndexWriter._set_facts, 4)

def kill_in_search_files():
    image_index.scipy.sparse.save_npz = killing(image_index.scipy.sparse.save_npz, 1)

def kill_before_publishing():
    image_index.hash_file = killing(image_index.hash_file, 3)

model_name, model = model, load_model(model)
for kill in (kill_in_batch, kill_in_transaction, kill_in_search_files, kill_before_publishing):
    child = os.fork()
    if child == 0:
        kill()
        arguments = IndexArguments(model=model_name, images=images, index=f"{index}_{kill.__name__}", batch_size=2)
        indexing.index_images(*model, arguments)
        os._exit(0)
    print(kill.__name__, -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_killed_process_loses_nothing_that_was_committed(run, loaded, model_folder, pictures, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(indexing.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, model_folder, str(pictures), str(tmp_path / "index")]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    deaths = dict(line.split() for line in printed.splitlines())
    assert len(deaths) == 4 and set(deaths.values()) == {str(int(signal.SIGKILL))}

    run(index=str(tmp_path / "whole"))
    committed = {"in_batch": 2, "in_transaction": 2, "in_search_files": 7, "before_publishing": 7}
    for point, num_committed in committed.items():
        index = tmp_path / f"index_kill_{point}"
        with pytest.raises(ValueError, match="is not finished; run index_images again"):
            ImageIndex(index)
        with sqlite3.connect(index / "images.sqlite3") as connection:
            assert connection.execute("SELECT count(*) FROM images").fetchone()[0] == num_committed
            assert connection.execute("SELECT count(*) FROM files").fetchone()[0] == num_committed
        assert run(index=str(index)).num_embedded == NUM_PICTURES - num_committed
        assert files_of(index) == EXPECTED
        whole = embed_images(*loaded, [Image.open(pictures / "0.png")])
        for by in ("embeds", "codes"):
            expected = ImageIndex(tmp_path / "whole").query(whole, by, 10)
            assert ImageIndex(index).query(whole, by, 10) == expected


def test_search_goes_on_with_the_last_whole_run(run, loaded, pictures, tmp_path, monkeypatch, caplog):
    run()
    monkeypatch.setattr(searching, "load_model", lambda name, device: loaded)
    save_noise(pictures / "7.png", seed=7)
    (pictures / "0.png").unlink()

    def fail(*arguments):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(image_index.faiss, "write_index", fail)
        with pytest.raises(OSError, match="No space left"):
            run()
    assert files_of(tmp_path / "index") == EXPECTED
    search_images(SearchArguments(index=str(tmp_path / "index"), text="a cat"))
    assert "changed since its last complete run" in caplog.text
    assert run().num_embedded == 0
    assert files_of(tmp_path / "index") == EXPECTED - {("0.png", "nought")} | {("7.png", None)}


def test_the_scripts_print_and_draw(model_folder, loaded, pictures, tmp_path, capsys, monkeypatch):
    shutil.copy(pictures / "0.png", pictures / "zero.png")
    index = str(tmp_path / "index")
    index_images.main(IndexArguments(model=model_folder, images=str(pictures), index=index))
    assert "holds 7 images of 8 files: 7 embedded now, 0 removed, 0 files left out" in capsys.readouterr().out
    (pictures / "2.png").unlink()
    for by in ("embeds", "codes"):
        search_images(
            SearchArguments(
                index=index, image=str(pictures / "0.png"), by=by, top_k=6, grid=str(tmp_path / "out/grid.png")
            )
        )
        monkeypatch.setattr(searching, "load_model", lambda name, device: loaded)  # once is enough
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["1", "1.0000", str(pictures / "0.png"), "nought"]
        assert lines[1].split() == [str(pictures / "zero.png")]
        assert [int(line.split()[0]) for line in lines[2:7]] == [2, 3, 4, 5, 6]
        with Image.open(tmp_path / "out/grid.png") as grid:
            assert grid.format == "PNG"
            assert grid.size == (5 * searching.CELL, 2 * (searching.CELL + 2 * searching.LINE))
            cell = grid.crop((0, 0, searching.CELL, searching.CELL))
            assert len(cell.getcolors(maxcolors=2**24)) > 1000  # the picture of noise, not an empty cell
    hits = [search_index.Hit(0.5, [(pictures / "2.png", "a long caption that does not fit into its cell")])]
    cell = searching.draw_grid(hits)  # a file that has gone leaves its place empty
    assert cell.size == (searching.CELL, searching.CELL + 2 * searching.LINE)
    assert cell.getpixel((searching.CELL // 2, 10)) == (255, 255, 255)


def test_grids_of_strange_results(tmp_path):
    """None of them, images of all shapes, a pipe, and captions that are long or of several lines."""
    save_noise(tmp_path / "0.png", seed=0)
    for name, size in (("wide", (8000, 1)), ("high", (1, 8000)), ("dot", (1, 1))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    os.mkfifo(tmp_path / "pipe.png")
    cell = searching.CELL, searching.CELL + 2 * searching.LINE
    assert searching.draw_grid([]).size == cell
    for name in ("0", "wide", "high", "dot", "pipe"):
        hit = search_index.Hit(0.5, [(tmp_path / f"{name}.png", "many words\r\nand\x1b[2J lines " * 100)])
        sheet = searching.draw_grid([hit])
        assert sheet.size == cell
        colors = {color for _, color in sheet.crop((0, 0, *2 * [searching.CELL])).getcolors(2**24)}
        assert name in ("0", "pipe") or (255, 0, 0) in colors


def test_what_is_printed_cannot_steer_the_terminal():
    path = Path(os.fsdecode(b"/a\x1b]0;title\x07/latin-\xe9.png"))
    hits = [search_index.Hit(0.5, [(path, "\u202eevil\nline 2\x1b[2J"), (Path("b.png"), "日本　👩\u200d🚀 é")])]
    assert searching.format_hits(hits).splitlines() == [
        "   1  0.5000  /a\\x1b]0;title\\x07/latin-\\udce9.png  \\u202eevil\\nline 2\\x1b[2J",
        "              b.png  日本　👩\u200d🚀 é",
    ]
    assert searching.format_hits([]) == "(nothing found)"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "give either text or image, got text=None and image=None"),
        ({"text": "a", "image": "b.png"}, "give either text or image"),
        ({"text": "a", "after": "May 1"}, "after must be a date such as 2026-05-01, got 'May 1'"),
        ({"text": "a", "after": "2026-05-02", "before": "2026-05-02"}, "after must be earlier than before"),
        ({"text": "a", "grid": "grid.jpg"}, "grid must end in .png, got 'grid.jpg'"),
        ({"text": "a", "grid": f"{__file__}/grid.png"}, "grid must be a file that can be written"),
    ],
)
def test_wrong_search_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SearchArguments(index="index", **changes)


def test_a_query_that_is_no_picture_is_refused(tmp_path):
    with pytest.raises(ValueError, match="image='.*missing.png': "):
        searching.read_query_image(str(tmp_path / "missing.png"))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="image='.*text.png': .*text.png is not an image of a known format"):
        searching.read_query_image(str(tmp_path / "text.png"))
    with pytest.raises(ValueError, match="image='/dev/zero': /dev/zero is not a regular file"):
        searching.read_query_image("/dev/zero")


@pytest.mark.parametrize(
    "changes, message", [({"batch_size": 0}, "batch_size"), ({"codes_per_image": 0}, "codes_per")]
)
def test_wrong_index_arguments_are_refused(run, changes, message):
    with pytest.raises(ValueError, match=f"{message}.* must be at least 1, got 0"):
        run(**changes)


def test_the_device_is_used(loaded, pictures, tmp_path, monkeypatch):
    devices = []

    def load(name, device):
        devices.append(device)
        return loaded

    for module in (embedding, searching):
        monkeypatch.setattr(module, "load_model", load)
    index = str(tmp_path / "index")
    index_images.main(IndexArguments(model="model", images=str(pictures), index=index, device="cuda:1"))
    search_images(SearchArguments(index=index, text="a cat", device="cuda:2"))
    assert devices == ["cuda:1", "cuda:2"]


def test_a_model_without_codes_is_searched_by_embeds(loaded, pictures, tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 49409, "eos_token_id": 49408},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    model, processor = CLIPModel(config).eval(), loaded[1]
    indexing.index_images(
        model, processor, IndexArguments(model="clip", images=str(pictures), index=str(tmp_path / "index"))
    )
    index = ImageIndex(tmp_path / "index")
    query = embed_captions(model, processor, ["a cat"])
    assert len(index.query(query, "embeds", 3)) == 3
    with pytest.raises(ValueError, match="by='codes' needs a model with codes"):
        index.query(query, "codes", 3)


def test_the_benchmark_counts_what_is_found(loaded, model_folder, tmp_path, monkeypatch, capsys):
    from datasets import Dataset, DatasetDict

    for number in range(4):
        save_noise(tmp_path / f"{number}.png", seed=number)
    images = [Image.open(tmp_path / f"{number}.png") for number in (0, 1, 2, 3, 0)]
    rows = {"image": images, "caption": ["one", "two", "three", "four", "one"]}
    DatasetDict({"test": Dataset.from_dict(rows)}).save_to_disk(tmp_path / "data")
    arguments = benchmark_search.SearchBenchmarkArguments(
        output_dir=str(tmp_path / "out"),
        model=model_folder,
        dataset=str(tmp_path / "data"),
        numbers_of_images=[20],
        numbers_of_codes=[4],
        active_codes=[3],
        codebook_size=16,
        codebook_dim=8,
        num_queries=2,
    )
    threads = torch.get_num_threads()
    benchmark_search.main(arguments)
    torch.set_num_threads(threads)
    results = json.loads((tmp_path / "out/results.json").read_text())
    recall = results["recall"]
    assert (recall["num_images"], recall["num_captions"], recall["num_image_queries"]) == (5, 4, 2)
    for name, row in recall["contestants"].items():
        # Rows 0 and 4 are one picture: each finds the other first, once its own row is left out.
        assert row["image to image"] == {"R@1": 1, "R@5": 1, "R@10": 1}
        assert row["bytes_per_image"] > 0
        if "largest" not in name:  # of four codes none may be the query's
            assert row["text to image"]["R@10"] == 1
    images, captions = embed_images(*loaded, images), embed_captions(*loaded, ["four", "one", "three", "two"])
    best = (captions.embeds @ images.embeds.T).argmax(dim=1)
    expected = np.mean(
        [rows["caption"][i] == name for i, name in zip(best, ("four", "one", "three", "two"), strict=True)]
    )
    assert recall["contestants"]["embeds, flat"]["text to image"]["R@1"] == expected
    assert set(results["growth"]["20"]) == {"embeds, flat", "codes, 3 active"}
    printed = capsys.readouterr().out
    assert "| 20 | codes, 3 active |" in printed and "| 4 largest codes, cosine |" in printed


def test_wrong_benchmark_arguments_are_refused():
    with pytest.raises(ValueError, match="parts must be among"):
        benchmark_search.SearchBenchmarkArguments(output_dir="out", parts=["speed"])
    with pytest.raises(ValueError, match="recall needs model and dataset"):
        benchmark_search.SearchBenchmarkArguments(output_dir="out")
