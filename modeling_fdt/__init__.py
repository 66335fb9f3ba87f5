# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Finite Discrete Tokens (FDT, CVPR 2023, arXiv 2303.14865) for Hugging Face transformers."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForTextEncoding,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
)

# transformers 5.17 guards the name in its own namespace by torchvision, which the class does not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .configuration_fdt import FDTConfig
from .explanation_fdt import FDTExplanation
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
    "FDTExplanation",
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
# Of several classes AutoModel takes the one that a folder's `architectures` names, and the first where it names none.
AutoModel.register(FDTConfig, (FDTModel, FDTTextModel, FDTVisionModel))
AutoModelForZeroShotImageClassification.register(FDTConfig, FDTModel)
AutoModelForImageClassification.register(FDTConfig, FDTForImageClassification)
AutoModelForTextEncoding.register(FDTConfig, FDTTextModel)
AutoImageProcessor.register(FDTConfig, FDTImageProcessor)
AutoTokenizer.register(FDTConfig, FDTTokenizer)
AutoProcessor.register(FDTConfig, FDTProcessor)
