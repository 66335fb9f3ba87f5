# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""An index of images on disk: what a model says of each, and the files that search reads.

An index is a folder. `images.sqlite3` is its only truth: one row for each distinct image (embedding and code
weights) and one for each file, each with a checksum, written in one transaction per batch, so that whatever stops the
process leaves whole batches. From it the search files are built: `embeds.faiss`, a FAISS index of the embeddings by
inner product, `codes.npz`, the inverted index of the code weights (SciPy CSR, one row for each code), and
`files.sqlite3`, paths and captions. They stand in a folder of their own, which counts only once the database names it
with their checksums; all that search answers comes from them.
"""

import json
import re
import shutil
import sqlite3
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import faiss
import numpy as np
import scipy.sparse
from filelock import FileLock, Timeout

from run_scripts.data.files import hash_file
from run_scripts.evaluation.embedding import Features


DATABASE, LOCK, SEARCH_FILES = "images.sqlite3", "lock", "search_files"
FORMAT_VERSION = 2
FAISS_FACTORIES = {"flat": "Flat", "hnsw": "HNSW32"}
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


@dataclass(frozen=True)
class Hit:
    """One image found: its score (a cosine), and the path and caption of each file that holds it."""

    score: float
    files: list[tuple[Path, str | None]]


def printable(text: str) -> str:
    """Text to print: what would move the cursor, reorder letters or be no character at all is escaped."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _NOT_PRINTED and character not in _JOINERS
        else character
        for character in text
    )


def build_dense_index(embeds: np.ndarray, kind: Literal["flat", "hnsw"]) -> faiss.Index:
    """A FAISS index of embeddings by inner product.

    Args:
        embeds: (num_images, dim) float32, rows of length 1.
        kind: `flat` compares with every image and is exact, `hnsw` walks a graph and is approximate.
    """
    index = faiss.index_factory(embeds.shape[1], FAISS_FACTORIES[kind], faiss.METRIC_INNER_PRODUCT)
    index.add(embeds)
    return index


def stack_codes(codes: list[np.ndarray], code_weights: list[np.ndarray], codebook_size: int) -> scipy.sparse.csr_array:
    """Active codes and weights of images as a matrix of shape (num_images, codebook_size)."""
    starts = np.cumsum([0, *map(len, codes)])
    # SciPy keeps 4 bytes for a code's number only where the starts take no more than that.
    starts = starts.astype(np.int32 if starts[-1] < 2**31 else np.int64)
    entries = (np.concatenate(code_weights), np.concatenate(codes), starts)
    return scipy.sparse.csr_array(entries, shape=(len(codes), codebook_size))


def build_inverted_index(code_weights: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """The inverted index of code weights: for each code the images in which it is active.

    Args:
        code_weights: (num_images, codebook_size) at least 0, with a weight in every row.

    Returns:
        (codebook_size, num_images), columns of length 1, so that the product with a query of length 1 is the cosine.
    """
    lengths = np.sqrt(code_weights.multiply(code_weights).sum(axis=1))
    scaled = code_weights.multiply(1 / lengths[:, None])
    return scaled.T.tocsr().astype(np.float32)


def keep_largest(codes: np.ndarray, code_weights: np.ndarray, num_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of an image's active codes, in rising order, and their weights: those with the `num_codes` largest weights."""
    kept = np.sort(np.argsort(-code_weights, kind="stable")[:num_codes])
    return codes[kept], code_weights[kept]


def score_images(inverted_index: scipy.sparse.csr_array, code_weights: np.ndarray) -> np.ndarray:
    """Cosines of a query's code weights with those of all images.

    Args:
        inverted_index: (codebook_size, num_images), from `build_inverted_index`.
        code_weights: (codebook_size,) of the query, not all 0. Only the rows of its active codes are read.

    Returns:
        (num_images,) in [0, 1].
    """
    active = np.flatnonzero(code_weights)
    weights = code_weights[active] / np.linalg.norm(code_weights)
    return weights @ inverted_index[active]


def best(scores: np.ndarray, top_k: int) -> np.ndarray:
    """Positions of the `top_k` highest scores above 0, best first; of equal ones the first."""
    candidates = np.flatnonzero(scores > 0)
    if len(candidates) > top_k:
        values = scores[candidates]
        candidates = candidates[values >= np.partition(values, -top_k)[-top_k]]
    return candidates[np.lexsort((candidates, -scores[candidates]))][:top_k]


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
        check_model(self.folder, facts["model_hash"], self.model_name, self.model_hash)
        former = Path(facts["images"])
        if former != self.images and former.exists():
            raise ValueError(
                f"images={str(self.images)!r} is not the folder that index={str(self.folder)!r} holds, "
                f"{str(former)!r}, which still exists; give each folder an index of its own"
            )
        with connection:
            self._set_facts(model_name=self.model_name, images=str(self.images))

    def _set_facts(self, **facts: Any) -> None:
        texts = {name: json.dumps(value) for name, value in facts.items()}
        rows = [(name, text, _fact_checksum(name, text)) for name, text in texts.items()]
        self._connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", rows)

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
            connection.execute("CREATE TABLE files (image_id INTEGER NOT NULL, path TEXT NOT NULL, caption TEXT)")
            rows = self._connection.execute("SELECT image_id, path, caption FROM files ORDER BY image_id, path")
            connection.executemany("INSERT INTO files VALUES (?, ?, ?)", rows)
            connection.execute("CREATE INDEX files_of_image ON files (image_id)")

    def _read_images(
        self, codes_per_image: int | None
    ) -> tuple[np.ndarray, np.ndarray, scipy.sparse.csr_array | None]:
        """Ids, embeds and code weights of all images in the order of their ids."""
        ids, embeds, codes, code_weights = [], [], [], []
        query = "SELECT id, digest, embeds, codes, code_weights, checksum FROM images ORDER BY id"
        for image_id, *blobs, checksum in self._connection.execute(query):
            if zlib.crc32(b"".join(blobs)) != checksum:
                raise ValueError(f"index={str(self.folder)!r} is damaged: image {image_id}; make a new one")
            ids.append(image_id)
            embeds.append(np.frombuffer(blobs[1], np.float32))
            active = np.frombuffer(blobs[2], np.int32), np.frombuffer(blobs[3], np.float32)
            active = active if codes_per_image is None else keep_largest(*active, codes_per_image)
            codes.append(active[0])
            code_weights.append(active[1])
        codebook_size = _read_facts(self._connection)["codebook_size"]
        matrix = None if codebook_size is None else stack_codes(codes, code_weights, codebook_size)
        return np.array(ids), np.stack(embeds), matrix


class ImageIndex:
    """An index to search in: as the last whole run of indexing left it, whatever is being written now.

    Args:
        folder: the index.

    Attributes:
        model_name, model_hash: the model that made it.
        is_current: whether nothing was committed since the search files were written.

    Raises:
        ValueError: there is no index, it has no search files yet, or it is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
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
        self.model_name, self.model_hash = facts["model_name"], facts["model_hash"]
        self.is_current = facts["is_current"]
        self._images = Path(facts["search_files"]["settings"]["images"])
        written = _search_folder(folder, facts["search_files"]["number"])
        self._ids = np.load(written / "ids.npy")
        self._dense_index = faiss.read_index(str(written / "embeds.faiss"))
        codes = written / "codes.npz"
        self._inverted_index = scipy.sparse.load_npz(codes) if codes.exists() else None
        self._connection = _open_to_read(written / "files.sqlite3")

    def __len__(self) -> int:
        return len(self._ids)

    def close(self) -> None:
        self._connection.close()

    def search(
        self,
        query: Features,
        by: Literal["embeds", "codes"],
        top_k: int,
        subfolder: str | None = None,
        caption_word: str | None = None,
    ) -> list[Hit]:
        """The images nearest to a query by the cosine of embeddings or of code weights.

        Args:
            query: of one image or caption, from the model that made the index.
            by: what is compared.
            top_k: how many, at least 1; there are fewer hits if the index holds fewer, or, by codes, if fewer share a
                code with the query, or fewer pass the filters.
            subfolder: of the folder that was indexed: only images with a file in it or below it.
            caption_word: only images with this word, or these words in a row, in a caption, in any case of letters.

        Returns:
            Hits with falling score.

        Raises:
            ValueError: `top_k` is less than 1, or the model has no codes.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        allowed = None if subfolder is None and caption_word is None else self._filter(subfolder, caption_word)
        if by == "codes":
            if self._inverted_index is None:
                raise ValueError("by='codes' needs a model with codes, and the model of this index has none")
            scores = score_images(self._inverted_index, query.code_weights[0].numpy())
            if allowed is not None:
                scores = np.where(allowed, scores, 0)
            rows = best(scores, top_k)
            scores = scores[rows]
        else:
            scores, rows = search_dense(self._dense_index, query.embeds.numpy(), min(top_k, len(self)), allowed)
            is_found = rows[0] >= 0  # a graph may reach fewer images than there are
            scores, rows = scores[0][is_found], rows[0][is_found]
        return [
            Hit(float(score), self._files(int(image_id)))
            for score, image_id in zip(scores, self._ids[rows], strict=True)
        ]

    def _filter(self, subfolder: str | None, caption_word: str | None) -> np.ndarray:
        """For every row whether one file of its image is in the subfolder and has the word in its caption."""
        inside = None if subfolder is None else PurePosixPath(subfolder)
        word = None if caption_word is None else re.compile(rf"(?<!\w){re.escape(caption_word)}(?!\w)", re.IGNORECASE)
        ids = {
            image_id
            for image_id, path, caption in self._connection.execute("SELECT image_id, path, caption FROM files")
            if (inside is None or inside in PurePosixPath(path).parents)
            and (word is None or (caption is not None and word.search(caption)))
        }
        return np.isin(self._ids, list(ids))

    def _files(self, image_id: int) -> list[tuple[Path, str | None]]:
        query = "SELECT path, caption FROM files WHERE image_id = ? ORDER BY path"
        return [(self._images / path, caption) for path, caption in self._connection.execute(query, (image_id,))]


def search_dense(
    index: faiss.Index, queries: np.ndarray, top_k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of the `top_k` nearest embeddings, of all or of the allowed rows, best first.

    Args:
        allowed: (num_rows,), for every row whether it may be found.

    Returns:
        Both of shape (num_queries, top_k). Where there are fewer rows, the rest is of row -1.
    """
    options = {} if allowed is None else {"sel": faiss.IDSelectorBatch(np.flatnonzero(allowed))}
    if isinstance(index, faiss.IndexHNSW):
        # The walk keeps this many candidates: more finds more of the nearest, and must be no fewer than are asked for.
        parameters = faiss.SearchParametersHNSW(efSearch=max(128, top_k), **options)
    else:
        parameters = faiss.SearchParameters(**options)
    return index.search(queries, top_k, params=parameters)


def check_model(folder: Path, expected_hash: str, name: str, model_hash: str) -> None:
    """Raise a ValueError unless the model of this name and hash made the index."""
    if model_hash != expected_hash:
        raise ValueError(
            f"model={name!r} (hash {model_hash[:12]}) did not make index={str(folder)!r} (hash {expected_hash[:12]}): "
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
