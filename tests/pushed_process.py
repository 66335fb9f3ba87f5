"""What sentence-transformers and an Inference Endpoint make of a pushed model, run by test_hub.py where this package
is not.

python -I -S tests/pushed_process.py SITE_PACKAGES REPORT NAME IMAGE
"""

import importlib
import json
import sys
from pathlib import Path


sys.path.append(sys.argv[1])

from huggingface_hub import snapshot_download
from PIL import Image
from sentence_transformers import SentenceTransformer, SparseEncoder


REPORT, NAME, IMAGE = sys.argv[2:]
report = {"refused": []}
for encoder_class in (SentenceTransformer, SparseEncoder):
    try:
        encoder_class(NAME, device="cpu")
    except Exception as error:
        report["refused"].append(f"{type(error).__name__}: {error}")

image = Image.open(IMAGE)
encoder = SentenceTransformer(NAME, trust_remote_code=True, device="cpu")
report["image_embeds"] = encoder.encode(image).tolist()
sparse_encoder = SparseEncoder(NAME, trust_remote_code=True, device="cpu")
report["image_code_weights"] = sparse_encoder.encode(image).to_dense().tolist()
report["text_codes"] = sparse_encoder.decode(sparse_encoder.encode("a cat"))
sparse_encoder.save_pretrained("saved")

folder = snapshot_download(NAME)
sys.path.insert(0, folder)
endpoint = importlib.import_module("handler").EndpointHandler(folder)
report["endpoint"] = endpoint({"inputs": image, "parameters": {"task": "codes"}})
report["explained"] = endpoint({"inputs": image, "parameters": {"task": "explanation", "top_k": 2}})

Path(REPORT).write_text(json.dumps(report))
