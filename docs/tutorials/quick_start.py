# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Quick start

A model, its processor, zero-shot classification, and the codes behind an embedding. The model is tiny and untrained,
so its answers mean nothing yet; a trained one is used in exactly the same way.

    python docs/tutorials/quick_start.py
"""

import torch
from PIL import Image
from transformers import pipeline

from modeling_fdt import FDTConfig, FDTImageProcessor, FDTModel, FDTProcessor, FDTTokenizer


# A configuration is two towers, each the configuration of a transformers model, and the codebook that they share.
# `FDTConfig.vit_b_32()` is the paper's; this one is small enough for any machine.

torch.manual_seed(0)
small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
config = FDTConfig(
    vision_config={**small, "image_size": 32, "patch_size": 8},
    text_config=small,
    codebook_size=64,
    codebook_dim=32,
    grounding_temperature=5.0,
)
model = FDTModel(config).eval()

# The processor turns images and captions into the model's inputs. Model and processor are saved in one folder, and
# `from_pretrained` takes that folder or a name on the Hub.

image_processor = FDTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
processor = FDTProcessor(image_processor=image_processor, tokenizer=FDTTokenizer())
folder = "outputs/tutorials/quick_start"
model.save_pretrained(folder)
processor.save_pretrained(folder)
model, processor = FDTModel.from_pretrained(folder), FDTProcessor.from_pretrained(folder)

# Images and captions go in together. The logits compare every image with every caption.

image = Image.new("RGB", (48, 40), "red")
captions = ["a red square", "a photo of a cat"]
inputs = processor(images=image, text=captions, return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
print("probabilities:", outputs.logits_per_image.softmax(dim=-1))

# An embedding is a weighted sum of codes. Sparsemax gives most codes a weight of exactly 0; the others sum to 1.

weights = outputs.image_code_weights[0]
active = weights.nonzero().flatten()
print(f"{len(active)} of {config.codebook_size} codes are active in the image, and sum to {weights.sum():.3f}")
embedding = torch.nn.functional.normalize(weights @ model.codebook, dim=-1)
print("largest difference from image_embeds:", (embedding - outputs.image_embeds[0]).abs().max().item())

# transformers' pipeline does the same; it knows FDT once `modeling_fdt` is imported.

classify = pipeline("zero-shot-image-classification", model=folder)
for answer in classify(image, candidate_labels=captions, hypothesis_template="{}"):
    print(f"{answer['score']:.3f} {answer['label']}")
