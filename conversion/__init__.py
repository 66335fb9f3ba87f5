"""Checkpoints of the original FDT implementation to transformers and back, and warm starts from CLIP checkpoints."""
