# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""A copy of an index in a Qdrant collection, for many who search at once.

Every image is one point with the id that it has in the database: its embedding, the sparse vector of its code weights,
and the paths, captions and dates of its files to filter by and to show. A point also says what of the database it was
made from (`state`), so that a run writes only what differs, wherever the last one stopped.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from run_scripts.evaluation.embedding import Features, iterate_batches
from run_scripts.search.arguments import split_address
from run_scripts.search.image_index import IndexWriter, check_model
from run_scripts.search.search_index import (
    NO_FILTERS,
    Filters,
    Hit,
    IndexedFile,
    IndexedImage,
    check_query,
    find_words,
    list_folders,
)


try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.http.exceptions import ApiException
except ImportError as error:
    raise ImportError("a Qdrant collection needs qdrant-client: pip install -e '.[qdrant]'") from error


POINTS_PER_REQUEST, IDS_PER_REQUEST = 256, 10_000


class QdrantIndex:
    """A collection to search in; see `SearchIndex`.

    Args:
        address: as `split_address` takes it.

    Raises:
        ValueError: there is no such collection, or none that index_images wrote.
    """

    def __init__(self, address: str):
        self.address = address
        with ExitStack() as opened:
            self._connection = opened.enter_context(closing(_Connection(address)))
            facts = self._connection.read_facts()
            if facts is None:
                raise ValueError(f"index={address!r} is no collection yet; index_images --copy_to makes it")
            opened.pop_all()
        self.model_name, self.model_hash = facts["model_name"], facts["model_hash"]
        self.is_current = facts["is_current"]
        self._images, self._has_codes = Path(facts["images"]), facts["has_codes"]
        self._is_exact = facts["dense_index"] == "flat"

    def query(
        self, features: Features, by: Literal["embeds", "codes"], top_k: int, filters: Filters = NO_FILTERS
    ) -> list[Hit]:
        """As in `SearchIndex`."""
        check_query(by, top_k, self._has_codes)
        if by == "embeds":
            query = features.embeds[0].tolist()
        else:
            code_weights = features.code_weights[0].numpy()
            codes = np.flatnonzero(code_weights)
            query = _make_sparse_vector(codes, code_weights[codes])
        points = self._connection.call(
            "query_points",
            query=query,
            using=by,
            limit=top_k,
            query_filter=_make_filter(filters),
            search_params=models.SearchParams(exact=self._is_exact),
            with_payload=["files[].path", "files[].caption"],
        ).points
        return [
            Hit(point.score, [(self._images / file["path"], file["caption"]) for file in point.payload["files"]])
            for point in points
        ]

    def count(self) -> int:
        """As in `SearchIndex`."""
        return self._connection.call("count").count

    def close(self) -> None:
        """As in `SearchIndex`."""
        self._connection.close()


class QdrantWriter:
    """Keeps a collection a copy of an index. A context manager.

    Args:
        address: as `split_address` takes it; the collection is made if it is missing.
        writer: of the index.

    Raises:
        ValueError: the collection is of another index, another model or another program, or cannot be reached.
    """

    def __init__(self, address: str, writer: IndexWriter):
        self.address, self.writer = address, writer

    def __enter__(self) -> "QdrantWriter":
        with ExitStack() as opened:
            self._connection = opened.enter_context(closing(_Connection(self.address)))
            facts = self._connection.read_facts()
            self._is_new = facts is None
            if facts is not None:
                check_model(self.address, facts["model_hash"], self.writer.model_name, self.writer.model_hash)
                if facts["index_id"] != self.writer.index_id:
                    raise ValueError(
                        f"copy_to={self.address!r} is a copy of another index than {str(self.writer.folder)!r}; give "
                        "each a collection of its own"
                    )
            opened.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self._connection.close()

    def update(self, dense_index: Literal["flat", "hnsw"], codes_per_image: int | None) -> tuple[int, int]:
        """Bring the collection up to date; arguments as in `IndexArguments`.

        Returns:
            The numbers of images that were written and deleted.
        """
        wanted, files_of = {}, {}
        for image_id, digest, files in self.writer.list_images():
            wanted[image_id] = _describe(digest, files, codes_per_image)
            files_of[image_id] = files
        facts = {
            "model_name": self.writer.model_name,
            "images": str(self.writer.images),
            "dense_index": dense_index,
        }
        if self._is_new:
            self._create(len(self.writer.read_image(next(iter(wanted)), None).embeds), facts)
        states = self._read_states()
        gone = states.keys() - wanted.keys()
        changed = [image_id for image_id, state in wanted.items() if states.get(image_id) != state]
        self._connection.call("update_collection", metadata={**facts, "is_current": not (gone or changed)})
        self.delete(gone)
        self.upsert(
            (self.writer.read_image(image_id, codes_per_image), files_of[image_id], wanted[image_id])
            for image_id in changed
        )
        self._connection.call("update_collection", metadata={"is_current": True})
        return len(changed), len(gone)

    def upsert(self, images: Iterable[tuple[IndexedImage, list[IndexedFile], str]]) -> None:
        """Write images, each with its files and state."""
        has_codes = self.writer.codebook_size is not None
        for batch in iterate_batches((_make_point(*image, has_codes) for image in images), POINTS_PER_REQUEST):
            self._connection.call("upsert", points=batch, wait=True)

    def delete(self, image_ids: Iterable[int]) -> None:
        """Delete images."""
        for batch in iterate_batches(image_ids, IDS_PER_REQUEST):
            self._connection.call("delete", points_selector=batch, wait=True)

    def _create(self, dim: int, facts: dict[str, str]) -> None:
        has_codes = self.writer.codebook_size is not None
        identity = {"index_id": self.writer.index_id, "model_hash": self.writer.model_hash}
        self._connection.call(
            "create_collection",
            # Embeddings have length 1, so that their inner product is the cosine.
            vectors_config={"embeds": models.VectorParams(size=dim, distance=models.Distance.DOT)},
            sparse_vectors_config={"codes": models.SparseVectorParams()} if has_codes else None,
            metadata={**identity, **facts, "has_codes": has_codes, "is_current": False},
        )
        for name, kind in (("folders", "keyword"), ("words", "keyword"), ("modified", "integer")):
            self._connection.call("create_payload_index", field_name=f"files[].{name}", field_schema=kind)

    def _read_states(self) -> dict[int, str]:
        states, offset = {}, None
        while True:
            points, offset = self._connection.call(
                "scroll", limit=IDS_PER_REQUEST, offset=offset, with_payload=["state"]
            )
            states.update((point.id, point.payload.get("state")) for point in points)
            if offset is None:
                return states


class _Connection:
    """One collection of a client; what goes wrong becomes a ValueError that names its address."""

    def __init__(self, address: str):
        self.address = address
        location, self.collection = split_address(address)
        options = {"path": location}
        if location.startswith("http"):
            options = {"url": location, "api_key": os.environ.get("QDRANT_API_KEY"), "check_compatibility": False}
        with self._refuse():
            self.client = QdrantClient(**options)

    def call(self, method: str, **options: Any) -> Any:
        """Of the client on the collection."""
        with self._refuse(), warnings.catch_warnings():
            # The local mode says that it has no indexes and needs none.
            warnings.filterwarnings("ignore", category=UserWarning, module=__name__)
            return getattr(self.client, method)(self.collection, **options)

    def read_facts(self) -> dict[str, Any] | None:
        """What index_images noted of the index; None if there is no such collection.

        Raises:
            ValueError: another program made the collection.
        """
        if not self.call("collection_exists"):
            return None
        facts = self.call("get_collection").config.metadata or {}
        if not facts.keys() >= {"index_id", "model_hash"}:
            raise ValueError(f"index={self.address!r} is a collection that index_images did not make")
        return facts

    def close(self) -> None:
        self.client.close()

    @contextmanager
    def _refuse(self) -> Iterator[None]:
        try:
            yield
        except (ApiException, RuntimeError, OSError) as error:  # a local folder that another has open: RuntimeError
            raise ValueError(f"index={self.address!r} cannot be used: {error}") from error


def _describe(digest: bytes, files: list[IndexedFile], codes_per_image: int | None) -> str:
    """What a point was made from, as a hash: equal for equal points of one model."""
    content = [digest.hex(), codes_per_image, *(asdict(file) for file in files)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _make_point(image: IndexedImage, files: list[IndexedFile], state: str, has_codes: bool) -> models.PointStruct:
    vectors = {"embeds": image.embeds.tolist()}
    if has_codes:
        vectors["codes"] = _make_sparse_vector(image.codes, image.code_weights)
    payload = [
        {**asdict(file), "folders": list_folders(file.path), "words": sorted(find_words(file.caption))}
        for file in files
    ]
    return models.PointStruct(id=image.image_id, vector=vectors, payload={"state": state, "files": payload})


def _make_sparse_vector(codes: np.ndarray, code_weights: np.ndarray) -> models.SparseVector:
    """Of length 1, so that the inner product of two is their cosine."""
    values = code_weights / np.linalg.norm(code_weights)
    return models.SparseVector(indices=codes.tolist(), values=values.tolist())


def _make_filter(filters: Filters) -> models.Filter | None:
    if filters == NO_FILTERS:
        return None
    values = [("words", word) for word in sorted(filters.words)]
    values += [] if filters.folder is None else [("folders", filters.folder)]
    conditions = [models.FieldCondition(key=key, match=models.MatchValue(value=value)) for key, value in values]
    start, end = filters.seconds
    if (start, end) != (None, None):
        conditions.append(models.FieldCondition(key="modified", range=models.Range(gte=start, lt=end)))
    # Nested: one file must pass them all.
    nested = models.Nested(key="files", filter=models.Filter(must=conditions))
    return models.Filter(must=[models.NestedCondition(nested=nested)])
