"""Single functions of installed packages whose modules cannot be imported here, as an outside opinion on ours."""

import ast
import importlib.metadata
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch


def outside_function(path: str, name: str) -> Callable[..., Any]:
    """A function of open_clip_torch, compiled by itself: its modules need torchvision."""
    try:
        file = importlib.metadata.distribution("open_clip_torch").locate_file(path)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs pip install --no-deps open_clip_torch")
    functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    (function,) = (node for node in functions if node.name == name)
    function.returns = None
    for argument in function.args.args:
        argument.annotation = None
    namespace = {"torch": torch, "np": np, "partial": partial, "Sequence": Sequence}
    exec(compile(ast.Module([function], []), str(file), "exec"), namespace)
    return namespace[name]
