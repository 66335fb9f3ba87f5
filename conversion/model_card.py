# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Where converted and newly started models come from, for their cards."""

from .original_config import OriginalConfig


def describe_conversion(
    config: OriginalConfig, name: str, sha256: str, last_iter: int, differences: dict[str, float] | None
) -> str:
    """
    Markdown on a converted checkpoint.

    Args:
        config: the checkpoint's configuration.
        name, sha256: of the checkpoint's file.
        last_iter: the training step it was written at.
        differences: what verification found, each as a share of the largest magnitude; None without verification.
    """
    if differences:
        values = ", ".join(f"{name} {value:.1g}" for name, value in differences.items())
        comparison = _COMPARED.format(values=values)
    else:
        comparison = "Not compared with the checkpoint: the conversion ran without verification."
    folded_bias = "" if config.codebook else _FOLDED_BIAS
    return _CONVERSION.format(
        name=name,
        sha256=sha256,
        last_iter=last_iter,
        model_type=config.model_type,
        comparison=comparison,
        folded_bias=folded_bias,
    )


def describe_warm_start(clip: str, codebook_origin: str) -> str:
    """Markdown on a model that starts from the towers of the checkpoint `clip` and has not been trained."""
    return _WARM_START.format(clip=clip, codebook_origin=codebook_origin)


_CONVERSION = """\
## Origin

- Checkpoint `{name}`, SHA-256 `{sha256}`, training step {last_iter:,}, in the format of
  [yuxiaochen1103/FDT](https://github.com/yuxiaochen1103/FDT) (Apache-2.0), model type `{model_type}`.
- {comparison}{folded_bias}

The original's recipe for CC3M, which a checkpoint of the authors' followed: 32 epochs with batch size 1,024; AdamW
with peak learning rate 1e-3 and cosine decay over 86,560 steps. For their released ViT-B/32 weights the authors report
ImageNet zero-shot accuracy and COCO rsum of 18.4 and 189.5 with FDT, 15.4 and 145.1 for the CLIP baseline. These
numbers were not measured on this conversion.
"""
_COMPARED = """\
Compared with an independent forward pass of the checkpoint's tensors on a fixed batch in float64; largest
  differences as a share of the largest magnitude: {values}."""
_FOLDED_BIAS = """
- The bias of the original's text projection, which transformers' CLIPModel does not have, is folded into the text
  tower's last layer norm."""
_WARM_START = """\
**Not trained yet.** Both towers are those of `{clip}`, with its vocabulary and image statistics; the groundings are
fresh, and so is the codebook ({codebook_origin}). Train it before use. The licence is that of `{clip}`.
"""
