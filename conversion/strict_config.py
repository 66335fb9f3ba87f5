# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Configuration files that strangers wrote, read strictly: no type is guessed, and no field stays unread."""

import json
import reprlib
import sys
from pathlib import Path
from typing import Any

import yaml


LARGEST_INTEGER = 2**31 - 1  # what no size or count of a model reaches
MOST_LAYERS = 1024  # of a tower or a stage; layers are built before weights can contradict their number
_MOST_NODES = 100_000  # of a YAML document with its aliases written out

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxstring = 2, 4, 4, 4, 80


def shown(value: Any) -> str:
    """A value for a message: of a bounded length, however large, deep or long it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of more than 4,300 digits"


def is_integer(value: Any) -> bool:
    """Whether a value is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return is_integer(value) or isinstance(value, float)


class Section:
    """
    A mapping of a configuration that checks types as it is read, and in the end that nothing was left unread.

    Args:
        path: where it stands in the configuration, for messages.
        values: the mapping.
        ignored: names that may be there and do not matter.

    Raises:
        ValueError: from every method, naming the field, what it is and what is allowed.
    """

    def __init__(self, path: str, values: Any, ignored: tuple[str, ...] = ()):
        if not isinstance(values, dict):
            raise ValueError(f"config: `{path}` must be a mapping, got {shown(values)}")
        strangers = [name for name in values if not isinstance(name, str)]
        if strangers:
            raise ValueError(f"config: the names in `{path}` must be strings, got {shown(strangers[0])}")
        self.path, self.values, self.ignored, self.read = path, values, ignored, set()

    def _refuse(self, name: str, allowed: str, value: Any) -> ValueError:
        return ValueError(f"config: `{self.path}.{name}` must be {allowed}, got {shown(value)}")

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        value = self.values.get(name, default)
        if value is None:
            raise ValueError(f"config: `{self.path}.{name}` is missing")
        return value

    def integer(self, name: str, default: int | None = None, largest: int = LARGEST_INTEGER) -> int:
        value = self.get(name, default)
        if not is_integer(value) or not 1 <= value <= largest:
            raise self._refuse(name, f"a positive integer of at most {largest:,}", value)
        return value

    def integers(self, name: str, largest: int = LARGEST_INTEGER) -> tuple[int, ...]:
        value = self.get(name)
        if not isinstance(value, list) or not value or not all(is_integer(n) and 1 <= n <= largest for n in value):
            raise self._refuse(name, f"a list of positive integers of at most {largest:,}", value)
        return tuple(value)

    def number(self, name: str) -> float:
        value = self.get(name)
        if not _is_number(value) or not 0 <= value <= sys.float_info.max:
            raise self._refuse(name, "a finite number of at least 0", value)
        return float(value)

    def numbers(self, name: str, count: int, default: tuple[float, ...]) -> list[float]:
        value = self.get(name, list(default))
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(_is_number(n) and abs(n) <= sys.float_info.max for n in value)
        ):
            raise self._refuse(name, f"a list of {count} finite numbers", value)
        return [float(number) for number in value]

    def choice(self, name: str, allowed: tuple, default: Any = None) -> Any:
        value = self.get(name, default)
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
            raise self._refuse(name, f"one of {list(allowed)}", value)
        return value

    def finish(self) -> None:
        unknown = sorted(set(self.values) - self.read - set(self.ignored))
        if unknown:
            known = sorted(self.read.union(self.ignored))
            raise ValueError(f"config: `{self.path}` has unknown fields {shown(unknown)}; known: {known}")


def _load_yaml(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_nodes(node, {}) > _MOST_NODES:
            raise ValueError(f"its aliases stand for more than {_MOST_NODES:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many nodes a YAML document has with its aliases written out; one that holds itself has too many."""
    if id(node) not in counts:
        counts[id(node)] = _MOST_NODES + 1  # if it is met again before it is counted
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        counts[id(node)] = 1 + sum(_count_nodes(part, counts) for part in parts)
    return counts[id(node)]


def read_mapping(path: str | Path) -> Any:
    """
    Reads a JSON or YAML file, by its extension.

    Raises:
        ValueError: the file does not exist, is of another kind or does not parse.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise ValueError(f"{path}: must be a .json, .yaml or .yml file, got {path.suffix!r}")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return json.loads(text) if path.suffix == ".json" else _load_yaml(text)
    except RecursionError as error:
        raise ValueError(f"{path}: not valid {path.suffix[1:].upper()}: it is nested too deeply") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not valid {path.suffix[1:].upper()}: {error}") from error
