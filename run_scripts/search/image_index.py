# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""An index of images on disk: what a model says of each, and the files that search reads.

An index is a folder. `images.sqlite3` is its only truth: one row for each distinct image (embedding and code
weights) and one for each file, each with a checksum, written in one transaction per batch, so that whatever stops the
process leaves whole batches. From it the search files are built: `embeds.faiss`, a FAISS index of the embeddings by
inner product, `codes.npz`, the inverted index of the code weights (SciPy CSR, one row for each code), and
`files.sqlite3`, paths, captions and dates. They stand in a folder of their own, which counts only once the database
names it with their checksums; all that search answers comes from them.
"""

import json
import shutil
import sqlite3
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import faiss
import numpy as np
import scipy.sparse
from filelock import FileLock, Timeout

from run_scripts.data.files import hash_file
from run_scripts.evaluation.embedding import Features
from run_scripts.search.nearest import (
    best,
    build_dense_index,
    build_inverted_index,
    keep_largest,
    score_images,
    search_dense,
    stack_codes,
)
from run_scripts.search.search_index import NO_FILTERS, Filters, Hit, IndexedFile, IndexedImage, check_query


DATABASE, LOCK, SEARCH_FILES = "images.sqlite3", "lock", "search_files"
FORMAT_VERSION = 2
SEARCH_FILES_VERSION = 2  # those of version 1 have no dates
SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL)",
    # AUTOINCREMENT: an id is never used twice, so older search files cannot name a newer image.
    """CREATE TABLE images (id INTEGER PRIMARY KEY AUTOINCREMENT, digest BLOB NOT NULL UNIQUE, embeds BLOB NOT NULL,
    codes BLOB NOT NULL, code_weights BLOB NOT NULL, checksum INTEGER NOT NULL)""",
    """CREATE TABLE files (path TEXT PRIMARY KEY, image_id INTEGER NOT NULL REFERENCES images,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, caption TEXT, checksum INTEGER NOT NULL)""",
    "CREATE INDEX files_of_image ON files (image_id)",
    f"PRAGMA user_version = {FORMAT_VERSION}",
)


IMAGE_COLUMNS = "id, digest, embeds, codes, code_weights, checksum"

# Control, format, surrogate, line and paragraph separator. Two of the second kind join letters and emoji.
_NOT_PRINTED, _JOINERS = ("Cc", "Cf", "Cs", "Zl", "Zp"), "\u200c\u200d"


@dataclass(frozen=True)
class FileState:
    """By what a file is known again without reading it, and its caption.

    Attributes:
        size: in bytes.
        mtime_ns: time of the last change, in nanoseconds.
        caption: None where the metadata have none.
    """

    size: int
    mtime_ns: int
    caption: str | None


def printable(text: str) -> str:
    """Text to print: what would move the cursor, reorder letters or be no character at all is escaped."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _NOT_PRINTED and character not in _JOINERS
        else character
        for character in text
    )


class IndexWriter:
    """Adds to an index, or makes a new one. A context manager: one process writes at a time.

    Args:
        folder: the index.
        images: the folder of images that is indexed.
        model_name: where search finds the model again.
        model_hash: from `hash_model`.

    Raises:
        ValueError: another process writes, the index is damaged or cannot be written, or it was made by another model
            or of another folder of images that still exists.
    """

    def __init__(self, folder: Path, images: Path, model_name: str, model_hash: str):
        self.folder, self.images = folder, images.resolve()
        self.model_name, self.model_hash = model_name, model_hash
        self._lock = FileLock(folder / LOCK)
        self._opened = ExitStack()

    def __enter__(self) -> "IndexWriter":
        with ExitStack() as opened:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                opened.enter_context(self._lock.acquire(timeout=0))
            except Timeout as error:
                raise ValueError(f"index={str(self.folder)!r} is being written by another process") from error
            except OSError as error:
                raise ValueError(f"index={str(self.folder)!r} cannot be written: {error}") from error
            with _refuse_damage(self.folder):
                self._connection = opened.enter_context(closing(sqlite3.connect(self.folder / DATABASE)))
                self._connection.create_function("file_checksum", 5, _file_checksum, deterministic=True)
                self._open()
            self._opened = opened.pop_all()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        self._opened.close()
        with _refuse_damage(self.folder):
            if isinstance(error, sqlite3.Error):
                raise error

    def _open(self) -> None:
        connection = self._connection
        if not connection.execute("SELECT * FROM sqlite_master").fetchall():
            with connection:
                connection.execute("BEGIN")
                for statement in SCHEMA:
                    connection.execute(statement)
                self._set_facts(model_hash=self.model_hash, images=str(self.images), is_current=False)
        _check_version(self.folder, connection)
        problems = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if problems != "ok":
            raise ValueError(f"index={str(self.folder)!r} is damaged: {problems}; make a new one")
        facts = _read_facts(connection)
        check_model(str(self.folder), facts["model_hash"], self.model_name, self.model_hash)
        former = Path(facts["images"])
        if former != self.images and former.exists():
            raise ValueError(
                f"images={str(self.images)!r} is not the folder that index={str(self.folder)!r} holds, "
                f"{str(former)!r}, which still exists; give each folder an index of its own"
            )
        with connection:
            index_id = facts.get("index_id", uuid4().hex)  # which indexes made before there were copies lack
            self._set_facts(model_name=self.model_name, images=str(self.images), index_id=index_id)

    def _set_facts(self, **facts: Any) -> None:
        texts = {name: json.dumps(value) for name, value in facts.items()}
        rows = [(name, text, _fact_checksum(name, text)) for name, text in texts.items()]
        self._connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", rows)

    @property
    def index_id(self) -> str:
        """By which a copy of this index is known."""
        return _read_facts(self._connection)["index_id"]

    @property
    def codebook_size(self) -> int | None:
        """The number of codes of the model; None if it has none."""
        return _read_facts(self._connection)["codebook_size"]

    def file_states(self) -> dict[str, FileState]:
        """All files, by their path relative to the folder of images.

        Raises:
            ValueError: a row of the database is damaged.
        """
        states = {}
        columns = "path, digest, size, mtime_ns, caption"
        query = f"SELECT {columns}, file_checksum({columns}) = files.checksum FROM files "
        query += "JOIN images ON images.id = image_id"
        for path, _, *state, is_whole in self._connection.execute(query):
            if not is_whole:
                raise ValueError(f"index={str(self.folder)!r} is damaged: file {path!r}; make a new one")
            states[path] = FileState(*state)
        return states

    def digests(self) -> set[bytes]:
        """The SHA-256 of every image's file."""
        return {digest for (digest,) in self._connection.execute("SELECT digest FROM images")}

    def add(self, digests: list[bytes], features: Features | None, files: dict[str, tuple[FileState, bytes]]) -> None:
        """Commit a batch, wholly or not at all.

        Args:
            digests: of the new images.
            features: what the model says of them, in their order; None if there are none.
            files: state and digest of new or changed files, by path; their images are new or known.
        """
        rows = [] if features is None else _to_rows(digests, features)
        with self._connection:
            self._connection.executemany(
                "INSERT INTO images (digest, embeds, codes, code_weights, checksum) VALUES (?, ?, ?, ?, ?)", rows
            )
            self._connection.executemany(
                "INSERT OR REPLACE INTO files SELECT :path, id, :size, :mtime_ns, :caption, "
                "file_checksum(:path, digest, :size, :mtime_ns, :caption) FROM images WHERE digest = :digest",
                [{"path": path, "digest": digest, **asdict(state)} for path, (state, digest) in files.items()],
            )
            facts = {"is_current": False} if files else {}
            if rows:
                code_weights = features.code_weights
                facts["codebook_size"] = None if code_weights is None else code_weights.shape[1]
            self._set_facts(**facts)

    def set_captions(self, captions: dict[str, str | None]) -> None:
        """Change the captions of files, by path."""
        with self._connection:
            self._connection.executemany(
                "UPDATE files SET caption = :caption, checksum = file_checksum(path, "
                "(SELECT digest FROM images WHERE id = image_id), size, mtime_ns, :caption) WHERE path = :path",
                [{"path": path, "caption": caption} for path, caption in captions.items()],
            )
            if captions:
                self._set_facts(is_current=False)

    def keep_only(self, paths: Iterable[str]) -> int:
        """Forget all other files, and images that no file holds any more; returns the number of those."""
        with self._connection:
            self._connection.execute("CREATE TEMP TABLE kept (path TEXT PRIMARY KEY)")
            self._connection.executemany("INSERT INTO kept VALUES (?)", [(path,) for path in paths])
            num_files, num_images = (
                self._connection.execute(f"DELETE FROM {condition}").rowcount
                for condition in (
                    "files WHERE path NOT IN (SELECT path FROM kept)",
                    "images WHERE id NOT IN (SELECT image_id FROM files)",
                )
            )
            self._connection.execute("DROP TABLE kept")
            if num_files:
                self._set_facts(is_current=False)
        return num_images

    def write_search_files(self, dense_index: Literal["flat", "hnsw"], codes_per_image: int | None) -> None:
        """Bring the search files up to date; arguments as in `IndexArguments`.

        Raises:
            ValueError: a row of the database is damaged.
        """
        settings = {"dense_index": dense_index, "codes_per_image": codes_per_image, "images": str(self.images)}
        settings["version"] = SEARCH_FILES_VERSION
        facts = _read_facts(self._connection)
        former = facts.get("search_files")
        is_current = facts["is_current"] and former["settings"] == settings
        if is_current and _find_damaged(self.folder, former) is None:
            return
        number = 1 if former is None else former["number"] + 1
        written = _search_folder(self.folder, number)
        shutil.rmtree(written, ignore_errors=True)  # of a run that was stopped here
        written.mkdir()
        ids, embeds, code_weights = self._read_images(codes_per_image)
        np.save(written / "ids.npy", ids)
        faiss.write_index(build_dense_index(embeds, dense_index), str(written / "embeds.faiss"))
        if code_weights is not None:
            scipy.sparse.save_npz(written / "codes.npz", build_inverted_index(code_weights), compressed=False)
        self._write_files(written / "files.sqlite3")
        checksums = {path.name: hash_file(path) for path in sorted(written.iterdir())}
        with self._connection:
            named = {"number": number, "settings": settings, "checksums": checksums}
            self._set_facts(search_files=named, is_current=True)
        for path in self.folder.glob(f"{SEARCH_FILES}-*"):
            if path != written:
                shutil.rmtree(path)

    def _write_files(self, path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(
                "CREATE TABLE files (image_id INTEGER NOT NULL, path TEXT NOT NULL, caption TEXT, "
                "modified INTEGER NOT NULL)"
            )
            rows = (
                (image_id, file.path, file.caption, file.modified)
                for image_id, _, files in self.list_images()
                for file in files
            )
            connection.executemany("INSERT INTO files VALUES (?, ?, ?, ?)", rows)
            connection.execute("CREATE INDEX files_of_image ON files (image_id)")

    def list_images(self) -> Iterator[tuple[int, bytes, list[IndexedFile]]]:
        """Id, digest and files of all images, in the order of their ids."""
        query = "SELECT id, digest, path, caption, mtime_ns FROM images JOIN files ON image_id = id ORDER BY id, path"
        for (image_id, digest), rows in groupby(self._connection.execute(query), key=itemgetter(0, 1)):
            # Whole seconds: a server compares times as float64, which has not the digits for nanoseconds.
            yield image_id, digest, [IndexedFile(path, caption, ns // 10**9) for _, _, path, caption, ns in rows]

    def read_image(self, image_id: int, codes_per_image: int | None) -> IndexedImage:
        """One image, with its largest codes or all.

        Raises:
            ValueError: its row is damaged.
        """
        row = self._connection.execute(f"SELECT {IMAGE_COLUMNS} FROM images WHERE id = ?", (image_id,)).fetchone()
        return self._check_image(row, codes_per_image)

    def _read_images(
        self, codes_per_image: int | None
    ) -> tuple[np.ndarray, np.ndarray, scipy.sparse.csr_array | None]:
        """Ids, embeds and code weights of all images in the order of their ids."""
        rows = self._connection.execute(f"SELECT {IMAGE_COLUMNS} FROM images ORDER BY id")
        images = [self._check_image(row, codes_per_image) for row in rows]
        matrix, size = None, self.codebook_size
        if size is not None:
            matrix = stack_codes([image.codes for image in images], [image.code_weights for image in images], size)
        return np.array([image.image_id for image in images]), np.stack([image.embeds for image in images]), matrix

    def _check_image(self, row: tuple, codes_per_image: int | None) -> IndexedImage:
        image_id, *blobs, checksum = row
        if zlib.crc32(b"".join(blobs)) != checksum:
            raise ValueError(f"index={str(self.folder)!r} is damaged: image {image_id}; make a new one")
        active = np.frombuffer(blobs[2], np.int32), np.frombuffer(blobs[3], np.float32)
        active = active if codes_per_image is None else keep_largest(*active, codes_per_image)
        return IndexedImage(image_id, blobs[0], np.frombuffer(blobs[1], np.float32), *active)


class ImageIndex:
    """An index to search in: as the last whole run of indexing left it, whatever is being written now.

    Args:
        folder: the index.

    Attributes:
        address, model_name, model_hash, is_current: as in `SearchIndex`.

    Raises:
        ValueError: there is no index, it has no search files yet, or it is damaged.
    """

    def __init__(self, folder: Path):
        self.address = str(folder)
        if not (folder / DATABASE).exists():
            raise ValueError(f"index={str(folder)!r} holds no index; index_images makes one")
        with _refuse_damage(folder):
            # Without `ro` SQLite would make a new database where this one has just been removed.
            with closing(_open_to_read(folder / DATABASE)) as connection:
                _check_version(folder, connection)
                facts = _read_facts(connection)
        if "search_files" not in facts:
            raise ValueError(f"index={str(folder)!r} is not finished; run index_images again, which goes on with it")
        damaged = _find_damaged(folder, facts["search_files"])
        if damaged is not None:
            raise ValueError(
                f"index={str(folder)!r} is damaged: {damaged} is not as it was written; run index_images again, "
                "which writes it anew without embedding anything"
            )
        if facts["search_files"]["settings"].get("version") != SEARCH_FILES_VERSION:
            raise ValueError(
                f"index={str(folder)!r} has search files of an older version; run index_images again, which writes "
                "them anew without embedding anything"
            )
        self.model_name, self.model_hash = facts["model_name"], facts["model_hash"]
        self.is_current = facts["is_current"]
        self._images = Path(facts["search_files"]["settings"]["images"])
        written = _search_folder(folder, facts["search_files"]["number"])
        self._ids = np.load(written / "ids.npy")
        self._dense_index = faiss.read_index(str(written / "embeds.faiss"))
        codes = written / "codes.npz"
        self._inverted_index = scipy.sparse.load_npz(codes) if codes.exists() else None
        self._connection = _open_to_read(written / "files.sqlite3")

    def count(self) -> int:
        """As in `SearchIndex`."""
        return len(self._ids)

    def close(self) -> None:
        """As in `SearchIndex`."""
        self._connection.close()

    def query(
        self, features: Features, by: Literal["embeds", "codes"], top_k: int, filters: Filters = NO_FILTERS
    ) -> list[Hit]:
        """As in `SearchIndex`."""
        check_query(by, top_k, self._inverted_index is not None)
        allowed = None if filters == NO_FILTERS else self._filter(filters)
        if by == "codes":
            scores = score_images(self._inverted_index, features.code_weights[0].numpy())
            if allowed is not None:
                scores = np.where(allowed, scores, 0)
            rows = best(scores, top_k)
            scores = scores[rows]
        else:
            scores, rows = search_dense(self._dense_index, features.embeds.numpy(), min(top_k, self.count()), allowed)
            is_found = rows[0] >= 0  # a graph may reach fewer images than there are
            scores, rows = scores[0][is_found], rows[0][is_found]
        return [
            Hit(float(score), self._files(int(image_id)))
            for score, image_id in zip(scores, self._ids[rows], strict=True)
        ]

    def _filter(self, filters: Filters) -> np.ndarray:
        """For every row whether its image passes the filters."""
        rows = self._connection.execute("SELECT image_id, path, caption, modified FROM files")
        return np.isin(self._ids, [image_id for image_id, *file in rows if filters.pass_file(IndexedFile(*file))])

    def _files(self, image_id: int) -> list[tuple[Path, str | None]]:
        query = "SELECT path, caption FROM files WHERE image_id = ? ORDER BY path"
        return [(self._images / path, caption) for path, caption in self._connection.execute(query, (image_id,))]


def check_model(index: str, expected_hash: str, name: str, model_hash: str) -> None:
    """Raise a ValueError unless the model of this name and hash made the index."""
    if model_hash != expected_hash:
        raise ValueError(
            f"model={name!r} (hash {model_hash[:12]}) did not make index={index!r} (hash {expected_hash[:12]}): "
            "their embeddings cannot be compared; make a new index"
        )


def _check_version(folder: Path, connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != FORMAT_VERSION:
        raise ValueError(
            f"index={str(folder)!r} holds no index of format {FORMAT_VERSION} (its database says {version}); "
            "make a new one"
        )


def _open_to_read(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _read_facts(connection: sqlite3.Connection) -> dict[str, Any]:
    rows = connection.execute("SELECT name, value, checksum FROM facts").fetchall()
    damaged = [name for name, text, checksum in rows if _fact_checksum(name, text) != checksum]
    # These were written first, in one transaction; a row that is gone is damage too.
    damaged += {"model_hash", "images", "is_current"} - {name for name, *_ in rows}
    if damaged:
        raise sqlite3.DatabaseError(f"fact {damaged[0]!r}")
    return {name: json.loads(text) for name, text, _ in rows}


def _fact_checksum(name: str, text: str) -> int:
    return zlib.crc32(f"{name}={text}".encode())


def _file_checksum(path: str, digest: bytes, size: int, mtime_ns: int, caption: str | None) -> int:
    return zlib.crc32(json.dumps([path, digest, size, mtime_ns, caption], default=bytes.hex).encode())


@contextmanager
def _refuse_damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if type(error) is sqlite3.DatabaseError:
            raise ValueError(f"index={str(folder)!r} is damaged: {error}; make a new one") from error
        # The subclasses are other things: a full disk, a lock, a folder that cannot be written.
        raise ValueError(f"index={str(folder)!r} cannot be used: {error}") from error


def _to_rows(digests: list[bytes], features: Features) -> list[tuple]:
    embeds = features.embeds.numpy()
    code_weights = np.zeros((len(embeds), 0)) if features.code_weights is None else features.code_weights.numpy()
    rows = []
    for digest, image_embeds, image_weights in zip(digests, embeds, code_weights, strict=True):
        codes = np.flatnonzero(image_weights).astype(np.int32)
        weights = image_weights[codes].astype(np.float32)
        blobs = (digest, image_embeds.tobytes(), codes.tobytes(), weights.tobytes())
        rows.append((*blobs, zlib.crc32(b"".join(blobs))))
    return rows


def _search_folder(folder: Path, number: int) -> Path:
    return folder / f"{SEARCH_FILES}-{number}"


def _find_damaged(folder: Path, search_files: dict) -> Path | None:
    """The first search file that is missing or has another checksum."""
    for name, checksum in search_files["checksums"].items():
        path = _search_folder(folder, search_files["number"]) / name
        if not path.exists() or hash_file(path) != checksum:
            return path
    return None
