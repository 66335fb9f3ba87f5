# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Griffe extension: docstrings in transformers' form, and the flags of scripts, as Markdown.

An entry of `Args:` reads ``name (`type` of shape `(rows, columns)`, *optional*): text``. Google's form has no place
for shapes and none for two names at once, so sections become definition lists here, and nothing is left to be parsed.
"""

import ast
import inspect
import re

import griffe


TITLES = {"Args": "Arguments", "Returns": "Returns", "Raises": "Raises", "Example": "Example"}
# A title at the margin, the rest of its line, and all lines that are further in.
SECTION = re.compile(rf"^({'|'.join(TITLES)}):[ ]*(.*(?:\n(?:[ ]+.*|(?=\n)))*)", re.M)
# Names with what they are in brackets, a colon, and the text. What stands in backticks is taken whole.
BRACKETS = r"\((?:[^()`]|`[^`]*`)*\)"
ENTRY = re.compile(rf"^((?:[^:()`]|`[^`]*`|{BRACKETS})+):(.*)$", re.S)
NAME = re.compile(rf"({BRACKETS})|([*\w]+)")
REFERENCE = re.compile(r"\[`~?([\w.]+)`\](?![\[(])")


class TransformersDocstrings(griffe.Extension):
    """Rewrites every docstring, and lists the fields of a script's arguments with their help."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        text = "" if obj.docstring is None else link_names(format_sections(obj.docstring.value), obj)
        flags = describe_flags(obj) if obj.is_class else []
        if text or flags:
            obj.docstring = griffe.Docstring("\n\n".join([text, *flags]), parent=obj)


def format_sections(docstring: str) -> str:
    """A docstring with its sections as Markdown."""
    return SECTION.sub(lambda match: format_section(match[1], match[2]), docstring)


def link_names(text: str, obj: griffe.Object) -> str:
    """The form in which a docstring names a class, method or function, as a link to its entry in the reference."""
    return REFERENCE.sub(lambda match: f"[`{match[1]}`][{find_path(match[1], obj)}]", text)


def find_path(name: str, obj: griffe.Object) -> str:
    """Where a name that a docstring uses is defined: in its module, or else in the package."""
    name, dot, attribute = name.partition(".")
    try:
        return obj.resolve(name) + dot + attribute
    except griffe.NameResolutionError:
        return f"modeling_fdt.{name}{dot}{attribute}"


def format_section(title: str, text: str) -> str:
    text = inspect.cleandoc(text)
    if title in ("Args", "Raises"):
        text = "\n\n".join(format_entry(entry) for entry in re.split(r"\n(?=\S)", text))
    return f"**{TITLES[title]}**\n\n{text}\n\n"


def format_entry(entry: str) -> str:
    """An argument or an exception as a term and its definition."""
    match = ENTRY.match(entry)
    if match is None:
        raise ValueError(f"an entry of a docstring must read 'name (`type`): text', got {entry!r}")
    term = NAME.sub(lambda part: part[1] or f"`{part[2]}`", " ".join(match[1].split()))
    return format_definition(term, match[2])


def format_definition(term: str, text: str) -> str:
    text = inspect.cleandoc(text.strip()).replace("\n", "\n    ")
    return f"{term}\n:   {text}"


def describe_flags(cls: griffe.Class) -> list[str]:
    """The fields of a dataclass that have a help text, as flags of the command line."""
    flags = []
    for name, attribute in cls.members.items():
        options = read_options(attribute)
        if "metadata" in options:
            default = options.get("default", options.get("default_factory"))
            default = "required" if default is None else f"default `{ast.unparse(default)}`"
            (text,) = options["metadata"].values
            flags.append(format_definition(f"`--{name}` (`{attribute.annotation}`, {default})", read_text(text, cls)))
    return flags


def read_options(attribute: griffe.Object) -> dict[str, ast.expr]:
    """The keywords of `dataclasses.field`, with which an attribute is declared; nothing for other members."""
    if not attribute.is_attribute or not isinstance(attribute.value, griffe.ExprCall):
        return {}
    call = ast.parse(str(attribute.value), mode="eval").body
    return {keyword.arg: keyword.value for keyword in call.keywords}


def read_text(node: ast.expr, cls: griffe.Class) -> str:
    """The value of a string; inside an f-string, constants of the module by value and other expressions as written."""
    if isinstance(node, ast.Constant):
        return node.value
    parts = []
    for part in node.values:
        if isinstance(part, ast.FormattedValue):
            written = ast.unparse(part.value)
            parts.append(f"`{cls.module.members[written].value if written in cls.module.members else written}`")
        else:
            parts.append(part.value)
    return "".join(parts)
