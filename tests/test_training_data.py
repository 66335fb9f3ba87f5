# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Pairs from tar shards and data sets: each once an epoch, broken ones skipped and counted, varied in training."""

import functools
import http.server
import io
import shutil
import tarfile
import threading
from collections import Counter
from itertools import islice

import pytest
from accelerate import skip_first_batches
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from run_scripts.arguments import DataArguments
from run_scripts.data import pairs as training_data
from run_scripts.data.batches import ContrastiveCollator
from run_scripts.data.captions import cut_caption
from run_scripts.data.pairs import (
    BrokenPair,
    DataCounts,
    PairStream,
    load_eval_dataset,
    load_train_dataset,
    make_pair,
)
from run_scripts.data.tar_shards import TarShards
from run_scripts.evaluation.embedding import embed_captions
from run_scripts.prepare_synthetic_pairs import SyntheticPairsArguments, prepare_synthetic_pairs


def encode(color="red", size=(8, 8), form="PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, form)
    return file.getvalue()


PICTURE = encode()
BROKEN = PICTURE[: len(PICTURE) // 2]


def write_tar(path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def pair(key: str, picture: bytes = PICTURE, caption: str | None = None) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", picture), (f"{key}.txt", (key if caption is None else caption).encode())]


def write_shards(folder, sizes: list[int]) -> tuple[str, set[str]]:
    """Shards of so many pairs each, their pattern and all captions."""
    captions = set()
    for shard, size in enumerate(sizes):
        keys = [f"s{shard}p{number}" for number in range(size)]
        write_tar(folder / f"{shard}.tar", [member for key in keys for member in pair(key)])
        captions.update(keys)
    return f"{folder}/{{0..{len(sizes) - 1}}}.tar", captions


def write_dataset(folder, rows: list[dict]) -> str:
    """A data set of `save_to_disk` with a split `train`; its pictures are bytes."""
    DatasetDict({"train": Dataset.from_list(rows).cast_column("image", ImageFeature())}).save_to_disk(str(folder))
    return str(folder)


def stream(pattern: str, seed: int = 0, max_broken_fraction: float = 0.1, **kwargs) -> PairStream:
    arguments = DataArguments(dataset=pattern, shuffle_buffer=16, max_broken_fraction=max_broken_fraction, **kwargs)
    return load_train_dataset(arguments, seed)


def captions_of(pairs) -> list[str]:
    return [caption for pair in pairs for caption in pair["caption"]]


def epoch_of(pairs: PairStream, epoch: int = 0, num_readers: int = 1) -> list[list[str]]:
    """The captions that each reader gives in one epoch."""
    return [captions_of(pairs.read_epoch(epoch, reader, num_readers)) for reader in range(num_readers)]


def skipped(pairs) -> dict[str, int]:
    totals = pairs.counts.totals()
    return {n.removeprefix("skipped_"): c for n, c in totals.items() if n.startswith("skipped_") and c > 0}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> tuple[str, set[str]]:
    return write_shards(tmp_path_factory.mktemp("uneven"), [1, 40, 7, 23, 12, 30, 2])


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> tuple[str, set[str]]:
    folder = tmp_path_factory.mktemp("parquet")
    captions = [f"row {number}" for number in range(50)]
    rows = Dataset.from_list([{"image": {"bytes": PICTURE, "path": None}, "caption": c} for c in captions])
    rows = rows.cast_column("image", ImageFeature())
    for shard in range(5):
        rows.shard(5, shard).to_parquet(folder / f"train-{shard}.parquet")
    return str(folder), set(captions)


def open_source(source: str, uneven, parquet, tmp_path) -> tuple[PairStream, set[str]]:
    if source == "tar":
        return stream(uneven[0]), uneven[1]
    if source == "parquet":
        return stream(parquet[0], streaming=True), parquet[1]
    captions = {f"row {number}" for number in range(50)}
    rows = [{"image": {"bytes": PICTURE, "path": None}, "caption": caption} for caption in sorted(captions)]
    return stream(write_dataset(tmp_path / "on_disk", rows), streaming=True), captions


# Every pair once


@pytest.mark.parametrize("source", ["tar", "parquet", "save_to_disk"])
def test_an_epoch_gives_every_pair_once_to_one_reader(source, uneven, parquet, tmp_path):
    pairs, captions = open_source(source, uneven, parquet, tmp_path)
    orders = []
    for epoch in (0, 1):
        parts = epoch_of(pairs, epoch, num_readers=4)
        assert all(parts)
        assert Counter(sum(parts, [])) == Counter(captions)
        orders.append(parts)
    assert orders[0] != orders[1]
    assert epoch_of(pairs, 0, num_readers=4) == orders[0]


def test_worker_processes_read_epoch_after_epoch(uneven, monkeypatch):
    pattern, captions = uneven
    # The workers are forked and inherit an end after three epochs.
    monkeypatch.setattr(training_data, "count", lambda: range(3))
    loader = DataLoader(stream(pattern), batch_size=16, num_workers=2, collate_fn=list)
    assert Counter(captions_of(pair for batch in loader for pair in batch)) == Counter([*captions] * 3)


def test_the_order_depends_on_the_seed_alone_and_can_be_skipped(uneven):
    def loader(seed):
        return DataLoader(stream(uneven[0], seed), batch_size=8, num_workers=2, collate_fn=captions_of)

    batches = list(islice(loader(0), 40))  # 320 of 115 pairs: beyond an epoch
    assert list(islice(loader(0), 40)) == batches
    assert list(islice(loader(1), 40)) != batches
    assert list(islice(skip_first_batches(loader(0), 25), 15)) == batches[25:]


def test_the_buffer_mixes_shards(uneven):
    shard_order = [caption.split("p")[0] for caption in epoch_of(stream(uneven[0]))[0]]
    changes = sum(a != b for a, b in zip(shard_order, shard_order[1:], strict=False))
    assert changes > 20  # 6 if shards were read one after the other


def test_more_readers_than_shards_are_refused(uneven):
    with pytest.raises(ValueError, match="7 shards for 8 readers"):
        next(iter(PairStream(TarShards(uneven[0]), DataCounts(0.1), 1, 0, num_processes=8)))
    with pytest.raises(ValueError, match="7 shards for 10 readers"):
        next(iter(DataLoader(stream(uneven[0]), num_workers=10, collate_fn=list)))


# Tar shards


def test_shards_by_pipe_and_by_url(uneven, tmp_path):
    pattern, captions = uneven
    assert set(epoch_of(stream(f"pipe:cat {pattern}"))[0]) == captions
    if shutil.which("curl") is None:
        pytest.skip("webdataset reads URLs by curl")
    handler = functools.partial(QuietHandler, directory=pattern.rsplit("/", 1)[0])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/{pattern.rsplit('/', 1)[1]}"
        assert set(epoch_of(stream(url))[0]) == captions
    finally:
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


def test_captions_of_the_json_file(tmp_path):
    members = [
        ("a.jpg", encode(form="JPEG")),
        ("a.txt", b"short"),
        ("a.json", b'{"texts": ["one", "two"], "width": 8}'),
    ]
    write_tar(tmp_path / "0.tar", [*members, ("b.jpg", PICTURE), ("b.json", b"{broken")])
    pairs = stream(str(tmp_path / "0.tar"), caption_column="texts", max_broken_fraction=1)
    assert [pair["caption"] for pair in pairs.read_epoch(0, 0, 1)] == [["one", "two"]]
    assert skipped(pairs) == {"missing_caption": 1}
    assert epoch_of(stream(str(tmp_path / "0.tar"))) == [["short"]]


def read_tar(folder, members: list[tuple[str, bytes]], **kwargs) -> tuple[list[str], PairStream]:
    """The captions of a shard of these files, sorted, and the stream that read them."""
    write_tar(folder / "0.tar", members)
    pairs = stream(str(folder / "0.tar"), max_broken_fraction=1, **kwargs)
    return sorted(epoch_of(pairs)[0]), pairs


def test_a_caption_of_the_json_file_counts_where_there_is_no_txt_file(tmp_path):
    members = [("a.jpg", PICTURE), ("a.json", b'{"caption": "by json"}')]
    members += [("b.jpg", PICTURE), ("b.json", b'{"caption": "by json"}'), ("b.txt", b"by txt")]
    members += [("c.jpg", PICTURE), ("c.json", b'{"caption": 5}'), ("d.jpg", PICTURE), ("d.json", b"[" * 10**5)]
    captions, pairs = read_tar(tmp_path, members)
    assert captions == ["by json", "by txt"]
    assert skipped(pairs) == {"missing_caption": 2}


@pytest.mark.parametrize("extension", ["gif", "bmp", "avif", "webp", "tiff", "PNG"])
def test_images_of_any_extension(tmp_path, extension):
    form = extension.upper()
    captions, _ = read_tar(tmp_path, [(f"a.{extension}", encode(form=form)), ("a.txt", b"a"), *pair("b")])
    assert captions == ["a", "b"]


@pytest.mark.parametrize(
    "names, captions",
    [
        (["photo.v1.jpg", "photo.v1.txt", "photo.v2.jpg", "photo.v2.txt"], ["photo.v1.txt", "photo.v2.txt"]),
        (
            ["2026.01.05.jpg", "2026.01.05.txt", "2026.02.05.jpg", "2026.02.05.txt"],
            ["2026.01.05.txt", "2026.02.05.txt"],
        ),
        (["a.depth.png", "a.jpg", "a.seg.png", "a.txt", "b.jpg", "b.txt"], ["a.txt", "b.txt"]),
        (["a.jpg", "a.json", "a.seg.png", "a.txt"], ["a.txt"]),
        (["x.y/a.jpg", "x.y/a.txt", "x.z/a.jpg", "x.z/a.txt"], ["x.y/a.txt", "x.z/a.txt"]),
        ([".hidden", "._a.jpg", "__meta.txt", "README", "a.jpg", "a.txt"], ["a.txt"]),
        (["a.jpg", "a.txt", "a.jpg", "a.txt"], ["a.txt", "a.txt"]),
    ],
)
def test_which_files_are_a_pair(tmp_path, names, captions):
    content = {"txt": str.encode, "json": lambda name: b"{}"}
    members = [(name, content.get(name.rpartition(".")[2], lambda name: PICTURE)(name)) for name in names]
    assert read_tar(tmp_path, members)[0] == captions


@pytest.mark.parametrize("names, reason", [(["a.v2.txt"], "missing_image"), (["a.v2.jpg"], "missing_caption")])
def test_halves_of_pairs_are_counted(tmp_path, names, reason):
    captions, pairs = read_tar(tmp_path, [(name, PICTURE) for name in names] + pair("b"))
    assert captions == ["b"] and skipped(pairs) == {reason: 1}


@pytest.mark.parametrize(
    "text", ["two dogs on the grass ", "😂" * 7, "a", "rock &amp; roll &rsquo;", "ÀÉ", "!?" * 9, "\n\t   dog", "9 "]
)
def test_huge_captions_are_cut_before_the_tokenizer_reads_them(tiny_processor, text):
    tokenizer = tiny_processor.tokenizer
    caption = text * (20_000 // len(text))
    cut = cut_caption(caption, tokenizer)
    assert len(cut) <= 64 * tokenizer.model_max_length
    assert tokenizer(cut, truncation=True)["input_ids"] == tokenizer(caption, truncation=True)["input_ids"]
    assert cut_caption("short  one", tokenizer) == "short  one"


@pytest.mark.parametrize("entry", ["training", "evaluation"])
def test_what_reads_captions_cuts_them(entry, tiny_model, tiny_processor, monkeypatch):
    read, rows = [], [{"image": Image.new("RGB", (8, 8)), "caption": "dog " * 10**5}]
    call = type(tiny_processor.tokenizer).__call__
    monkeypatch.setattr(
        type(tiny_processor.tokenizer),
        "__call__",
        lambda self, text, **kwargs: read.append(text) or call(self, text, **kwargs),
    )
    if entry == "training":
        ContrastiveCollator(tiny_processor)(rows)
    else:
        embed_captions(tiny_model, tiny_processor, [rows[0]["caption"]])
    assert [len(text) for text in read[0]] == [64 * 77]


# Broken data


@pytest.mark.parametrize("damage", ["cut between pairs", "cut between files", "damaged header", "no end"])
def test_a_shard_that_ends_early_is_noticed(tmp_path, damage):
    pattern, captions = write_shards(tmp_path, [4, 4])
    content = bytearray((tmp_path / "1.tar").read_bytes())
    with tarfile.open(tmp_path / "1.tar") as tar:
        starts = {member.name: member.offset for member in tar.getmembers()}
    lost = {"s1p2", "s1p3"}
    if damage == "cut between pairs":
        del content[starts["s1p2.png"] :]
    elif damage == "cut between files":
        del content[starts["s1p2.txt"] :]
    elif damage == "damaged header":
        content[starts["s1p2.png"] : starts["s1p2.png"] + 8] = b"\xff" * 8
    else:
        lost = set()
        del content[starts["s1p3.txt"] + 1024 :]
    (tmp_path / "1.tar").write_bytes(content)
    pairs = stream(pattern)
    assert set(epoch_of(pairs)[0]) == captions - lost
    assert skipped(pairs) == {"unreadable_shard": 1}


def test_a_reader_without_a_pair_does_not_stop_the_others(tmp_path):
    write_shards(tmp_path, [3] * 3)
    write_tar(tmp_path / "3.tar", pair("a", BROKEN))
    pattern = f"{tmp_path}/{{0..3}}.tar"
    loader = DataLoader(stream(pattern, max_broken_fraction=0.5), num_workers=4, collate_fn=captions_of)
    assert len(list(islice(loader, 60))) == 60


def test_each_broken_pair_is_skipped_and_counted_by_its_reason(tmp_path, caplog):
    members = [*pair("good"), *pair("cut", BROKEN), *pair("empty", b""), *pair("text", b"no picture")]
    members += [
        *pair("blank", caption=" \n"),
        ("no_caption.png", PICTURE),
        ("no_picture.txt", b"words"),
        *pair("last"),
    ]
    write_tar(tmp_path / "0.tar", members)
    pairs = stream(str(tmp_path / "0.tar"))
    assert sorted(epoch_of(pairs)[0]) == ["good", "last"]
    assert skipped(pairs) == {"undecodable_image": 3, "missing_caption": 2, "missing_image": 1}
    assert pairs.counts.totals()["pairs_read"] == 8
    assert f"cut of {tmp_path}/0.tar: undecodable_image" in caplog.text


@pytest.mark.parametrize("member", ["png", "txt"])
def test_a_truncated_shard_loses_only_what_is_cut_off(tmp_path, member):
    pattern, captions = write_shards(tmp_path, [6, 6, 6])
    with tarfile.open(tmp_path / "1.tar") as tar:
        end = tar.getmember(f"s1p3.{member}").offset_data + 2  # within the fourth pair
    content = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(content[:end])
    pairs = stream(pattern)
    assert set(epoch_of(pairs)[0]) == captions - {"s1p3", "s1p4", "s1p5"}
    assert skipped(pairs) == {"unreadable_shard": 1}


def test_shards_that_cannot_be_opened_are_skipped_up_to_a_share(tmp_path):
    _, captions = write_shards(tmp_path, [3] * 12)
    (tmp_path / "4.tar").unlink()
    pattern = f"pipe:cat {tmp_path}/{{0..11}}.tar 2> /dev/null"
    pairs = stream(pattern)
    assert set(epoch_of(pairs)[0]) == captions - {"s4p0", "s4p1", "s4p2"}
    assert skipped(pairs) == {"unreadable_shard": 1}
    for shard in (0, 2):
        (tmp_path / f"{shard}.tar").unlink()
    with pytest.raises(ValueError, match="of 1. shards are broken, more than max_broken_fraction=0.1"):
        list(islice(stream(pattern), 80))


def test_too_many_broken_pairs_stop_the_run_from_within_a_worker(tmp_path):
    for shard in range(2):
        members = [pair(f"s{shard}p{number}", BROKEN if number % 5 == 0 else PICTURE) for number in range(200)]
        write_tar(tmp_path / f"{shard}.tar", sum(members, []))
    with pytest.raises(ValueError, match="pairs are broken, more than max_broken_fraction=0.1; {'skipped_undecod"):
        list(islice(DataLoader(stream(f"{tmp_path}/{{0..1}}.tar"), num_workers=2, collate_fn=list), 800))
    pairs = stream(f"{tmp_path}/{{0..1}}.tar", max_broken_fraction=0.3)
    assert len(epoch_of(pairs)[0]) == 320
    assert skipped(pairs) == {"undecodable_image": 80}


def test_nothing_but_broken_pairs_ends_with_an_error(tmp_path):
    write_tar(tmp_path / "0.tar", pair("a", BROKEN))
    with pytest.raises(ValueError, match="an epoch ended without a pair"):
        next(iter(stream(str(tmp_path / "0.tar"))))


def broken_rows(num_rows: int, broken: set[int]) -> list[dict]:
    rows = [
        {"image": {"bytes": PICTURE, "path": None}, "caption": f"row {n}", "group": n // 2} for n in range(num_rows)
    ]
    for number in broken:
        rows[number]["image"]["bytes"] = BROKEN
    return rows


def test_the_next_valid_row_takes_the_place_of_a_broken_one(tmp_path):
    rows = broken_rows(10, {2, 3, 9})
    rows[5]["caption"] = None
    pairs = load_train_dataset(DataArguments(dataset=write_dataset(tmp_path / "data", rows)))
    assert captions_of(pairs.__getitems__([2, 4, 9, 5])) == ["row 6", "row 4", "row 0", "row 7"]
    assert skipped(pairs) == {"undecodable_image": 3, "missing_caption": 1}
    assert captions_of([pairs[3]]) == ["row 4"]


def test_a_row_in_the_place_of_a_broken_one_is_distinct(tmp_path):
    arguments = DataArguments(dataset=write_dataset(tmp_path / "data", broken_rows(8, {0})), distinct_column="group")
    pairs = load_train_dataset(arguments)
    assert captions_of(pairs.__getitems__([0, 2])) == ["row 4", "row 2"]  # groups 0 and 1 are taken
    assert list(pairs["group"]) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_too_many_broken_rows_stop_the_run(tmp_path):
    data = write_dataset(tmp_path / "data", broken_rows(600, set(range(0, 600, 5))))
    pairs = load_train_dataset(DataArguments(dataset=data))
    with pytest.raises(ValueError, match="pairs are broken, more than max_broken_fraction=0.1"):
        list(DataLoader(pairs, batch_size=10, num_workers=2, collate_fn=list))
    pairs = load_train_dataset(DataArguments(dataset=data, max_broken_fraction=0.5))
    batches = list(DataLoader(pairs, batch_size=10, num_workers=2, collate_fn=list))
    assert [len(batch) for batch in batches] == [10] * 60
    assert skipped(pairs) == {"undecodable_image": 240}  # two of each batch, and a third one on the way from either


def test_broken_captions_of_several_are_left_out(tmp_path):
    rows = [
        {"image": {"bytes": PICTURE, "path": None}, "caption": c} for c in (["a", None, " "], [None], [], ["b", "c"])
    ]
    arguments = DataArguments(dataset=write_dataset(tmp_path / "data", rows), max_broken_fraction=1)
    pairs = load_train_dataset(arguments)
    assert [pair["caption"] for pair in pairs.__getitems__([0, 3])] == [["a"], ["b", "c"]]
    with pytest.raises(ValueError, match="row 1 cannot be used, and there is no other"):
        pairs.__getitems__([0, 1, 2, 3])


def image_without_a_range() -> bytes:
    file = io.BytesIO()
    Image.new("F", (8, 8)).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize(
    "row, reason, message",
    [
        ({"image": image_without_a_range(), "caption": "a"}, "undecodable_image", "without a defined range"),
        ({"image": b"GIF89a", "caption": "a"}, "undecodable_image", "not an image of a known format"),
        ({"image": None, "caption": "a"}, "missing_image", None),
        ({"image": PICTURE, "caption": [None, " "]}, "missing_caption", None),
    ],
)
def test_a_row_that_is_no_pair_tells_why_and_is_counted_where_that_is_allowed(row, reason, message):
    counts = DataCounts(1.0)
    with pytest.raises(BrokenPair) as broken, counts.counting("here"):
        make_pair(row)
    assert broken.value.reason == reason and (message or "") in str(broken.value.error)
    assert counts.totals() == dict.fromkeys(counts.names, 0) | {"pairs_read": 1, f"skipped_{reason}": 1}


# Errors before anything is read


@pytest.fixture(scope="module")
def one_row(tmp_path_factory) -> str:
    row = {"image": {"bytes": PICTURE, "path": None}, "caption": "a", "number": 1, "numbers": [1]}
    return write_dataset(tmp_path_factory.mktemp("one_row") / "data", [row])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dataset": "nowhere/{000..003}.tar"}, "names 4 tar shards, 4 of which do not exist"),
        ({"dataset": "nowhere"}, "'nowhere' is no data set on disk"),
        ({"split": "test"}, "split='test' is not in"),
        ({"config_name": "main"}, "was written by save_to_disk"),
        ({"caption_column": "text"}, "caption_column='text' is no column"),
        ({"streaming": True, "image_column": "picture"}, "image_column='picture' is no column"),
        ({"image_column": "number"}, "must hold images, their bytes or paths, it holds"),
        ({"distinct_column": "concept"}, "distinct_column='concept' is no column"),
        ({"dataset": "0.tar", "distinct_column": "group"}, "needs rows to choose from, not a stream"),
        ({"dataset": "0.tar", "image_column": "jpg"}, "image_column must be 'image' with tar shards"),
        ({"dataset": "0.tar", "validation_split": "test"}, "tar shards have no splits"),
        ({"validation_dataset": "elsewhere"}, "needs validation_split"),
        ({"augment_on_device": True}, "augment_on_device needs augmentation"),
        ({"max_broken_fraction": 1.5}, "max_broken_fraction must be from 0 to 1"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be at least 1"),
    ],
)
def test_bad_data_arguments_are_refused(one_row, changes, message):
    with pytest.raises(ValueError, match=message):
        load_train_dataset(DataArguments(**{"dataset": one_row, **changes}))


def test_an_empty_data_set_is_refused(tmp_path):
    Dataset.from_dict({"image": [PICTURE], "caption": ["a"]}).select([]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError):  # the message is that of datasets
        load_train_dataset(DataArguments(dataset=str(tmp_path)))
    with pytest.raises(ValueError, match="an epoch ended without a pair"):
        next(iter(stream(str(tmp_path), streaming=True)))


def test_captions_that_are_no_strings_are_refused(one_row):
    for column in ("number", "numbers"):
        with pytest.raises(ValueError, match=f"caption_column='{column}' must hold strings"):
            load_train_dataset(DataArguments(dataset=one_row, caption_column=column))


def test_evaluation_takes_the_first_caption_and_refuses_none(tmp_path):
    rows = [{"image": {"bytes": PICTURE, "path": None}, "caption": ["a", "b"]}]
    arguments = DataArguments(dataset=write_dataset(tmp_path / "data", rows), validation_split="train")
    row = load_eval_dataset(arguments)[0]
    assert row["caption"] == "a" and row["image"].size == (8, 8)
    rows[0]["caption"] = []
    arguments = DataArguments(dataset=write_dataset(tmp_path / "none", rows), validation_split="train")
    with pytest.raises(ValueError, match="validation_split='train' must hold rows, each with a caption"):
        load_eval_dataset(arguments)


# Synthetic pairs


def test_synthetic_pairs_are_as_many_as_asked_for_and_broken_as_asked_for(tmp_path):
    prepare_synthetic_pairs(
        SyntheticPairsArguments(str(tmp_path), num_pairs=50, pairs_per_shard=20, broken_fraction=0.1, image_size=32)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.tar", "00001.tar", "00002.tar"]
    pairs = stream(f"{tmp_path}/{{00000..00002}}.tar", max_broken_fraction=1)
    first = next(pairs.read_epoch(0, 0, 1))
    assert first["image"].size == (32, 32) and len(first["caption"][0].split()) == 5
    assert len(epoch_of(pairs)[0]) == 45
