"""Embedding images of any place into Parquet by Ray: values, broken images, restarts, and who can read the result."""

import io
import tarfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from run_scripts.benchmarks import benchmark_embedding
from run_scripts.evaluation.embedding import embed_images, load_model
from run_scripts.search import embedding_files
from run_scripts.search.arguments import EmbedArguments
from run_scripts.search.embedding_files import EmbedReport, PartEmbedder, embed_files, list_image_files, make_schema
from tests.conftest import save_tiny_checkpoint


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tokenizer) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_checkpoint(folder, tokenizer)
    return str(folder)


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (36, 40, 3), dtype=np.uint8))


def png(seed: int) -> bytes:
    file = io.BytesIO()
    noise(seed).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def images(tmp_path) -> Path:
    """Seven images in two files, a shard and a parquet file, three broken ones, and a shard that is cut off."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "0.png").write_bytes(png(0))
    (folder / "sub/1.png").write_bytes(png(1))
    (folder / "sub/.hidden.png").write_bytes(png(9))
    (folder / "broken.jpg").write_bytes(b"no image")
    write_tar(folder / "whole.tar", {"2.png": png(2), "2.txt": b"two", "a.3.png": png(3), "bad.png": png(3)[:40]})
    write_tar(folder / "cut.tar", {"4.png": png(4), "5.png": png(5)})
    data = (folder / "cut.tar").read_bytes()
    (folder / "cut.tar").write_bytes(data[: 512 + (len(png(4)) // 512 + 1) * 512 + 700])
    values = [{"bytes": png(6), "path": None}, None, {"bytes": png(7), "path": None}]
    pq.write_table(pa.table({"image": values}), folder / "rows.parquet")
    return folder


def embedder(model_folder: str, images: Path, output_dir: Path, **changes) -> PartEmbedder:
    arguments = EmbedArguments(
        model=model_folder, images=str(images), output_dir=str(output_dir), device="cpu", batch_size=2, **changes
    )
    return PartEmbedder(arguments, make_schema(32, arguments.embeds_dtype, "hash"))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_the_images_and_what_is_wrong_with_the_others(model_folder, images, tmp_path, dtype):
    counts = embedder(model_folder, images, tmp_path / "out", embeds_dtype=dtype).embed_part(
        list_image_files(str(images))
    )
    assert counts == (6, 7, 4)
    (path,) = (tmp_path / "out").iterdir()
    rows = pq.read_table(path).to_pylist()
    seeds = {"0.png": 0, "1.png": 1, ("whole.tar", "2.png"): 2, ("whole.tar", "a.3.png"): 3}
    seeds |= {("cut.tar", "4.png"): 4, ("rows.parquet", "0"): 6, ("rows.parquet", "2"): 7}
    model, processor = load_model(model_folder)
    direct = embed_images(model, processor, [noise(seed) for seed in seeds.values()])
    found = {(Path(row["file"]).name, row["key"]) if row["key"] else Path(row["file"]).name: row for row in rows}
    assert {key for key, row in found.items() if row["reason"] is None} == set(seeds)
    for position, key in enumerate(seeds):
        embeds = direct.embeds[position].numpy()
        # One unit in the last place of the type, for batches of another size round otherwise.
        tolerance = 1e-6 if dtype == "float32" else 1e-3
        np.testing.assert_allclose(found[key]["embeds"], embeds, atol=tolerance)
        code_weights = np.zeros(64, np.float32)
        code_weights[found[key]["codes"]] = found[key]["code_weights"]
        np.testing.assert_allclose(code_weights, direct.code_weights[position].numpy(), atol=1e-6)
    reasons = {key: row["reason"] for key, row in found.items() if row["reason"] is not None}
    assert reasons.keys() == {"broken.jpg", "cut.tar", ("whole.tar", "bad.png"), ("rows.parquet", "1")}
    assert all(found[key]["embeds"] is None for key in reasons)
    assert "not an image" in reasons["broken.jpg"] and reasons[("rows.parquet", "1")] == "there is no image"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_datasets_and_duckdb_read_the_result_as_it_is(model_folder, images, tmp_path, dtype):
    embedder(model_folder, images, tmp_path / "out", embeds_dtype=dtype).embed_part(list_image_files(str(images)))
    pattern = str(tmp_path / "out/*.parquet")
    dataset = load_dataset("parquet", data_files=pattern, split="train", cache_dir=str(tmp_path / "cache"))
    embedded = dataset.filter(lambda row: row["reason"] is None)
    assert np.array(embedded["embeds"]).shape == (7, 32) and dataset.features["embeds"].length == 32
    answer = duckdb.sql(
        f"SELECT file, key, array_inner_product(embeds::FLOAT[32], embeds::FLOAT[32]) FROM '{pattern}' "
        "WHERE reason IS NULL AND len(codes) = len(code_weights) ORDER BY file, key"
    ).fetchall()
    assert len(answer) == 7 and all(abs(length - 1) < 1e-2 for _, _, length in answer)


def test_a_part_that_was_stopped_leaves_no_result(model_folder, images, tmp_path, monkeypatch):
    actor = embedder(model_folder, images, tmp_path / "out")

    def stop(*_):
        raise RuntimeError("stopped")

    monkeypatch.setattr(embedding_files, "embed_images", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        actor.embed_part(list_image_files(str(images)))
    assert not list((tmp_path / "out").glob("*.parquet"))
    assert embedding_files.read_finished(str(tmp_path / "out"), actor.schema, False) == set()


def test_what_gave_no_embedding_can_be_tried_again(model_folder, images, tmp_path):
    actor = embedder(model_folder, images, tmp_path / "out")
    write_tar(images / "empty.tar", {"0.txt": b"nothing to see"})
    sources = list_image_files(str(images))
    actor.embed_part(sources)
    out = str(tmp_path / "out")
    assert embedding_files.read_finished(out, actor.schema, retry_failed=False) == set(sources)
    # Of the shard that is cut off some images are embedded: they would be embedded twice.
    failed = [str(images / "broken.jpg"), str(images / "empty.tar")]
    assert embedding_files.read_finished(out, actor.schema, retry_failed=True) == set(sources) - set(failed)
    (images / "broken.jpg").write_bytes(png(5))
    assert actor.embed_part(failed) == (2, 1, 1)
    assert embedding_files.read_finished(out, actor.schema, retry_failed=True) == set(sources) - set(failed[1:])
    embedded = pa.concat_tables(pq.read_table(path) for path in (tmp_path / "out").iterdir())
    found = [(row["file"], row["key"]) for row in embedded.to_pylist() if row["reason"] is None]
    assert len(found) == len(set(found)) == 8


def test_wrong_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no file that ends in"):
        list_image_files(str(tmp_path))
    pq.write_table(pa.table({"picture": ["a.png"]}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="image_column='image' is no column of .*it has .'picture'."):
        embedding_files.check_image_column(list_image_files(str(tmp_path)), "image")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        EmbedArguments(model="m", images="i", output_dir="o", batch_size=0)


def test_the_benchmark_embeds_all_images(model_folder, tmp_path):
    scenes = [{"image": noise(number)} for number in range(5)]
    benchmark_embedding.write_scene_shards(tmp_path / "images", scenes, 5, 2, image_size=48)
    assert [path.name for path in sorted((tmp_path / "images").iterdir())] == ["00000.tar", "00001.tar"]
    assert benchmark_embedding.embed_in_a_loop(model_folder, tmp_path / "images", 2) == 5
    assert benchmark_embedding.measure_turns({"whole": lambda: 5}, 5, 2)["whole"] >= 0
    with pytest.raises(RuntimeError, match="half has not embedded 5 images"):
        benchmark_embedding.measure_turns({"half": lambda: 2}, 5, 1)


@pytest.mark.slow
def test_ray_embeds_all_and_a_restart_only_the_rest(model_folder, images, tmp_path):
    names = {"model": model_folder, "images": str(images), "output_dir": str(tmp_path / "out"), "device": "cpu"}
    arguments = EmbedArguments(**names, num_workers=1, batch_size=2)
    assert embed_files(arguments) == EmbedReport(6, 7, 4, 0)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(written) == 4  # two shards, a parquet file, and one part of three image files
    (images / "new.png").write_bytes(png(8))
    assert embed_files(arguments) == EmbedReport(1, 1, 0, 6)
    again = EmbedArguments(**names, num_workers=1, batch_size=2, retry_failed=True)
    assert embed_files(again) == EmbedReport(1, 0, 1, 6)  # the broken file
    assert written.items() < {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}.items()
    with pytest.raises(ValueError, match="was not made by this model with this embeds_dtype"):
        embed_files(EmbedArguments(**names, embeds_dtype="float16"))
