# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Finite Discrete Tokens (FDT, CVPR 2023, arXiv 2303.14865) for Hugging Face transformers."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
)

from .configuration_fdt import FDTConfig
from .grounding import FDTGrounding, pooled_grounding_scores, sparsemax
from .image_processing_fdt import FDTImageProcessor
from .modeling_fdt import (
    FDTForImageClassification,
    FDTModel,
    FDTOutput,
    FDTPreTrainedModel,
    FDTTextModel,
    FDTTextModelOutput,
    FDTVisionModel,
    FDTVisionModelOutput,
)
from .processing_fdt import FDTProcessor
from .tokenization_fdt import FDTTokenizer


__version__ = "0.1.0"

__all__ = [
    "FDTConfig",
    "FDTForImageClassification",
    "FDTGrounding",
    "FDTImageProcessor",
    "FDTModel",
    "FDTOutput",
    "FDTPreTrainedModel",
    "FDTProcessor",
    "FDTTextModel",
    "FDTTextModelOutput",
    "FDTTokenizer",
    "FDTVisionModel",
    "FDTVisionModelOutput",
    "pooled_grounding_scores",
    "sparsemax",
]

AutoConfig.register(FDTConfig.model_type, FDTConfig)
AutoModel.register(FDTConfig, FDTModel)
AutoModelForZeroShotImageClassification.register(FDTConfig, FDTModel)
AutoModelForImageClassification.register(FDTConfig, FDTForImageClassification)
AutoImageProcessor.register(FDTConfig, FDTImageProcessor)
AutoTokenizer.register(FDTConfig, FDTTokenizer)
AutoProcessor.register(FDTConfig, FDTProcessor)
