# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""An FDT model as the module of a sentence-transformers `SparseEncoder`: its embeddings are the code weights.

This file is copied into a model's folder, where `SparseEncoder(folder, trust_remote_code=True)` finds it; it imports
nothing of this repository.
"""

import json
from pathlib import Path

import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer


NAMES_FILE = "code_names.json"


class FDTCodeWeights(Transformer):
    """
    Gives `(batch_size, codebook_size)` code weights, at least 0, of captions and of images.

    Attributes:
        code_names: names of codes by their index; codes without one are called by their number.
    """

    code_names: dict[int, str]

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs) -> "FDTCodeWeights":
        module = super().load(model_name_or_path, subfolder=subfolder, **kwargs)
        source = {name: kwargs.get(name) for name in ("token", "cache_folder", "revision", "local_files_only")}
        path = cls.load_file_path(model_name_or_path, NAMES_FILE, subfolder=subfolder, **source)
        names = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
        module.code_names = {int(code): name for code, name in names.items()}
        return module

    def save(self, output_path: str, *args, **kwargs) -> None:
        super().save(output_path, *args, **kwargs)
        if self.code_names:
            names = {str(code): name for code, name in self.code_names.items()}
            Path(output_path, NAMES_FILE).write_text(json.dumps(names, ensure_ascii=False, indent=1), encoding="utf-8")

    def get_embedding_dimension(self) -> int:
        return self.config.codebook_size

    def on_model_ready(self, model: SparseEncoder) -> None:
        # SparseEncoder's own looks its dimensions up in the tokenizer's vocabulary, with which codes have no words in
        # common.
        model.decode = self.decode

    def decode(
        self, embeddings: torch.Tensor, top_k: int | None = None
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """
        The active codes by falling weight, by name, or as `code 17` where they have none.

        Args:
            embeddings: (codebook_size,) or (batch_size, codebook_size), sparse or dense.
            top_k: how many codes at most; by default all that are active.

        Returns:
            Names and weights; of a batch a list of them for every row.

        Raises:
            ValueError: the embeddings have another shape, or `top_k` is below 1.
        """
        codebook_size = self.get_embedding_dimension()
        if embeddings.ndim not in (1, 2) or embeddings.shape[-1] != codebook_size:
            shape = tuple(embeddings.shape)
            raise ValueError(f"embeddings must have shape ([batch_size,] {codebook_size}), got {shape}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1 or None, got {top_k}")
        if embeddings.ndim == 2:
            return [self.decode(row, top_k) for row in embeddings]
        weights, codes = embeddings.to_dense().sort(descending=True, stable=True)
        active = zip(codes[weights > 0].tolist(), weights[weights > 0].tolist(), strict=True)
        return [(self.code_names.get(code, f"code {code}"), weight) for code, weight in active][:top_k]
