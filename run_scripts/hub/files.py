# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Which files of a model's folder go to the Hub: those of a list, and no others."""

import glob
import json
import logging
from concurrent.futures import Future
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers.dynamic_module_utils import get_relative_import_files


logger = logging.getLogger(__name__)

# Directly in the folder; what lies in folders below it stays behind. The code is not here: see `_list_code`.
UPLOADED = (
    # The model, or adapters on one
    *("config.json", "generation_config.json", "model*.safetensors", "model*.safetensors.index.json"),
    *("adapter_config.json", "adapter_model.safetensors"),
    # Processor and tokenizer, those of other text towers included
    *("processor_config.json", "preprocessor_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
    # What sentence-transformers reads, and the names of codes
    *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "code_names.json"),
    # What an Inference Endpoint runs and installs
    *("handler.py", "requirements.txt"),
    # What is said of it, and what its parts' owners ask to be kept with it
    *("README.md", "results.json", "LICENSE*", "LICENCE*", "NOTICE*", "ATTRIBUTION*", "BPE_LICENSE"),
)
_HAVE_CODE = (
    *("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "modules.json"),
)


def list_uploads(folder: str | Path) -> tuple[list[str], list[str]]:
    """
    What of a model's folder goes to the Hub, and what does not.

    Args:
        folder: the model's folder.

    Returns:
        The names of the files that are uploaded, and those of the files and folders that stay behind; names of folders
        end in a slash. Both are sorted.

    Raises:
        ValueError: the folder holds neither a model's configuration nor that of adapters.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(f"`folder` must hold a model, got {folder} without config.json")
    code = _list_code(folder)
    uploaded, left_behind = [], []
    for path in sorted(folder.iterdir()):
        is_listed = path.name in code or any(fnmatchcase(path.name, pattern) for pattern in UPLOADED)
        if is_listed and path.is_file():
            uploaded.append(path.name)
        else:
            left_behind.append(f"{path.name}/" if path.is_dir() else path.name)
    return uploaded, left_behind


def push_folder(
    folder: str | Path, repo_id: str, private: bool | None = None, token: str | None = None, **kwargs: Any
) -> CommitInfo | Future:
    """
    Uploads the files of a model that [`list_uploads`] names, and logs what stays behind.

    Args:
        folder: the model's folder.
        repo_id: name of the repository, which is created if it does not exist.
        private: whether a new repository is private; by default what its owner has set.
        token: of a user who may write to it; by default the one that is logged in.
        kwargs: further arguments of `HfApi.upload_folder`, as `revision`.

    Raises:
        ValueError: the folder holds no model.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses. Nothing is lost, and the upload can be tried again.
    """
    uploaded, left_behind = list_uploads(folder)
    if left_behind:
        logger.info("left behind in %s: %s", folder, ", ".join(left_behind))
    names = [glob.escape(name) for name in uploaded]
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    return api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=names, **kwargs)


def _list_code(folder: Path) -> set[str]:
    """The modules that `trust_remote_code=True` loads: those that configurations name, and what these import."""
    names = set()
    for path in (folder / name for name in _HAVE_CODE):
        if path.is_file():
            for module in sorted(_named_modules(json.loads(path.read_text(encoding="utf-8")))):
                file = folder / f"{module}.py"
                if file.is_file():
                    names |= {file.name, *(Path(imported).name for imported in get_relative_import_files(file))}
    return names


def _named_modules(value: Any) -> set[str]:
    """The modules of this folder that a configuration names as `"module.Class"`: in `auto_map`s, or as a `type`."""
    if isinstance(value, list):
        return {module for part in value for module in _named_modules(part)}
    if not isinstance(value, dict):
        return set()
    modules = {module for part in value.values() for module in _named_modules(part)}
    if isinstance(value.get("type"), str):
        modules.add(value["type"].split(".")[0])
    for names in value.get("auto_map", {}).values():
        names = names if isinstance(names, list) else [names]
        modules |= {name.split(".")[0] for name in names if name and "--" not in name}  # owner/name--module.Class
    return modules
