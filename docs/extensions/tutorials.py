# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""MkDocs hook: every script in docs/tutorials becomes a page, its comments the text between blocks of its code."""

import ast
from itertools import groupby
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def render_tutorial(source: str, path: str) -> str:
    """A script as Markdown: the docstring is title and introduction, comments at the margin are prose."""
    title, _, introduction = ast.get_docstring(ast.parse(source)).partition("\n")
    body = source.split('"""', 2)[2]
    parts = [f"# {title}", introduction, f"The whole script is `{path}`."]
    for is_prose, lines in groupby(body.splitlines(), key=lambda line: line.startswith("#")):
        if is_prose:
            parts.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))
        elif code := "\n".join(lines).strip("\n"):
            parts.append(f"```python\n{code}\n```")
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for file in [file for file in files if file.src_uri.startswith("tutorials/")]:
        page = file.src_uri.removesuffix(".py") + ".md"
        source = Path(file.abs_src_path).read_text(encoding="utf-8")
        files.remove(file)
        files.append(File.generated(config, page, content=render_tutorial(source, f"docs/{file.src_uri}")))
    return files
