# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""FDT models for MTEB and its benchmarks of images (MIEB), by their embeddings and by their code weights."""

from typing import Any

from mteb.models import SentenceTransformerEncoderWrapper, SparseEncoderWrapper
from mteb.models.model_implementations import MODEL_REGISTRY
from mteb.models.model_meta import ModelMeta, ScoringFunction
from transformers import AutoConfig

import modeling_fdt  # noqa: F401 (registers FDT with the Auto classes)
from modeling_fdt.towers_fdt import get_context_length
from run_scripts.evaluation.results import hash_weights


class FDTModelMeta(ModelMeta):
    """What MTEB knows of an FDT model."""

    def _check_requirements(self) -> None:
        """Nothing: MTEB asks for torchvision before it loads any model of images, but FDT's need Pillow alone."""


def register_mteb_models(name: str, path: str | None = None, **facts: Any) -> tuple[ModelMeta, ModelMeta]:
    """
    Makes a model known to MTEB in this process: `mteb.get_model(name)` gives its embeddings, by SentenceTransformer,
    and `mteb.get_model(f"{name} (codes)")` its code weights as sparse vectors, by SparseEncoder.

    Args:
        name: `owner/name`, under which MTEB lists results; the model's name on the Hub unless `path` is given. Code
            that comes with the model is run.
        path: the model's folder; for the code weights one that `write_sparse_encoder` has prepared.
        facts: further fields of mteb's ModelMeta, as `revision`, `license` and `training_datasets`.

    Returns:
        What MTEB knows of the two.

    Raises:
        ValueError: the name has another form, the model has no codes, or the folder no safetensors file.
        OSError: there is no such model.
    """
    source = path or name
    config = AutoConfig.from_pretrained(source, revision=facts.get("revision"))
    if not hasattr(config, "codebook_size"):
        raise ValueError(f"{source!r} is a {config.model_type} model, which has no codes")
    fields = {
        # MTEB takes older results of the same revision for this model's.
        "revision": None if path is None else hash_weights(path),
        "release_date": None,
        "languages": ["eng-Latn"],
        "n_parameters": None,
        "memory_usage_mb": None,
        "max_tokens": get_context_length(config.text_config),
        "license": None,
        "open_weights": True,
        "public_training_code": None,
        "public_training_data": None,
        "framework": ["Sentence Transformers", "PyTorch", "Transformers"],
        "similarity_fn_name": ScoringFunction.COSINE,
        "use_instructions": False,
        "training_datasets": None,
        "modalities": ["image", "text"],
        "loader_kwargs": {"source": source},
        **facts,
    }
    dense = FDTModelMeta(name=name, loader=load_dense, embed_dim=config.codebook_dim, model_type=["dense"], **fields)
    sparse = FDTModelMeta(
        name=f"{name} (codes)", loader=load_sparse, embed_dim=config.codebook_size, model_type=["sparse"], **fields
    )
    MODEL_REGISTRY.update({meta.name: meta for meta in (dense, sparse)})
    return dense, sparse


def load_dense(name: str, source: str, **kwargs: Any) -> SentenceTransformerEncoderWrapper:
    """What MTEB calls for a model's embeddings."""
    return SentenceTransformerEncoderWrapper(source, trust_remote_code=True, **kwargs)


def load_sparse(name: str, source: str, **kwargs: Any) -> SparseEncoderWrapper:
    """
    What MTEB calls for a model's code weights.

    Raises:
        ValueError: the model's folder is none of a SparseEncoder; sentence-transformers would put a sparse autoencoder
            with random weights on it.
    """
    wrapper = SparseEncoderWrapper(source, trust_remote_code=True, **kwargs)
    if type(wrapper.model[0]).__name__ != "FDTCodeWeights":
        raise ValueError(
            f"{source!r} must have the files of a SparseEncoder, which write_sparse_encoder and push_to_hub add"
        )
    return wrapper
