# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""A Space on the Hub that shows a model in a browser: the page of `run_scripts.run_app` and the code that it needs."""

import ast
import importlib.metadata
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.utils import validate_repo_id

from run_scripts.hub.endpoint import list_requirements
from run_scripts.hub.sparse_encoder import check_two_tower_fdt


_PAGE = "run_scripts.visualization.app"
_ROOT = Path(__file__).parents[2]
_OWN = ("modeling_fdt", "run_scripts")
_APP = '''"""Which codes of {repo_id} decide about an image and labels; `python app.py` shows the same page here."""

from run_scripts.evaluation.embedding import load_model
from {page} import build_app


app = build_app(*load_model("{repo_id}"))
app.launch()
'''
_README = """---
{metadata}
---

# {title}

Drop an image and type labels: the page shows which of the model's finite discrete tokens decide, and where in the
image they score high. The model is [{repo_id}](https://huggingface.co/{repo_id}); of a private one, the Space needs a
secret `HF_TOKEN` that may read it.
"""


def write_space(model_folder: str | Path, repo_id: str, space_folder: str | Path) -> list[str]:
    """
    Writes the files of a Space: app.py, requirements.txt, README.md, and of this repository the code of the page.

    Args:
        model_folder: of the model, to see that it has codes.
        repo_id: name of the model on the Hub, which the Space loads.
        space_folder: takes the files; older ones of these names are replaced.

    Returns:
        The files' paths in the folder.

    Raises:
        ValueError: the folder holds no [`FDTModel`], or the name is none of a model on the Hub.
    """
    validate_repo_id(repo_id)
    check_two_tower_fdt(model_folder, "a Space")
    folder = Path(space_folder)
    copied = list_page_code()
    for path in copied:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_ROOT / path, folder / path)
    # The Space itself brings gradio, in the version that its README names.
    requirements = [line for line in list_requirements("app") if line != "gradio"]
    title = f"Codes of {repo_id.split('/')[-1]}"
    metadata = ModelCardData(
        title=title,
        sdk="gradio",
        sdk_version=importlib.metadata.version("gradio"),
        app_file="app.py",
        models=[repo_id],
        license="apache-2.0",
    )
    written = {
        "README.md": _README.format(metadata=metadata, title=title, repo_id=repo_id),
        "app.py": _APP.format(repo_id=repo_id, page=_PAGE),
        "requirements.txt": "\n".join(requirements) + "\n",
    }
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*map(str, copied), *written]


def list_page_code() -> list[Path]:
    """The files of this repository that the page imports, directly or through others, as paths from its root."""
    pending, files = [_PAGE], set()
    while pending:
        name = pending.pop()
        spec = importlib.util.find_spec(name)
        # With a module come the packages around it.
        pending += [name.rpartition(".")[0]] if "." in name else []
        path = Path(spec.origin).relative_to(_ROOT) if spec is not None and spec.origin else None
        if path is None or path in files:
            continue
        files.add(path)
        for node in ast.walk(ast.parse((_ROOT / path).read_text(encoding="utf-8"))):
            pending += [module for module in _imported(node, spec.parent) if module.split(".")[0] in _OWN]
    return sorted(files)


def _imported(node: ast.AST, package: str) -> list[str]:
    """The modules that one statement of a package's module imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [importlib.util.resolve_name("." * node.level + (node.module or ""), package)]
    return []


def push_space(space_folder: str | Path, files: Sequence[str], space_id: str, private: bool | None = None) -> None:
    """
    Uploads a Space.

    Args:
        space_folder, files: what [`write_space`] wrote.
        space_id: name of the Space, which is created if it does not exist.
        private: whether a new Space is private; by default what its owner has set.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
    """
    api = HfApi()
    api.create_repo(space_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    api.upload_folder(repo_id=space_id, repo_type="space", folder_path=space_folder, allow_patterns=list(files))
