# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of the original FDT implementation to transformers and back, and warm starts from CLIP checkpoints."""
