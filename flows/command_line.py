"""The command line: `--config FILE.yaml` and a flag for every field of the config, flags over YAML over defaults.

A flag is the whole value of its field: nothing of a list or mapping in the YAML is mixed in. Prefect is not imported
here, so that `--help` and a wrong field answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from tasks.config import GenerateConfig, StructuredConfig

EXIT_CONFIG = 2
MOST_SHOWN = 200
"""Characters of a wrong value that are shown."""
MOST_NAMED = 3
"""Flags that may have been meant."""
NONE = "null"
STRUCTURED = ("sampling", "structured")
FREE_TEXT = {("sampling", "stop"), (*STRUCTURED, "choice")}
"""Lists whose items may hold anything; in other lists' flags commas part them."""
FieldPath = tuple[str, ...]


class CommandLine(BaseSettings, GenerateConfig):
    """Generate a dataset: a model, a dataset, and what to make of them. Everything can stand in a YAML file.

    A flag replaces the YAML's value. A list's flag is repeated, or takes a JSON list ('["a", "b"]'); a mapping's takes
    a JSON object ('{"key": "value"}').
    """

    model_config = SettingsConfigDict(
        cli_parse_none_str=NONE,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_use_class_docs_for_groups=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    config: str | None = None
    """YAML file with any of the fields below; flags win over it."""


class _Parser(argparse.ArgumentParser):
    """Refuses in one line: the usage of all flags would bury it."""

    def error(self, message: str) -> NoReturn:
        _refuse([f"{message.removeprefix('argument ')} (one that begins with - is given as --flag=VALUE)"])


def parse(arguments: list[str]) -> GenerateConfig:
    """The config that the arguments ask for. Exits with 2, each wrong field named on one line, or 0 after --help."""
    flags = _flags(arguments)
    values = _read_yaml(flags.pop("config", None))
    try:
        return GenerateConfig.model_validate(_overlaid(values, _flag_values(flags)))
    except ValidationError as error:
        _refuse(wrong_fields(error))
    except RecursionError:
        _refuse(["config: it is nested too deeply"])


def wrong_fields(error: ValidationError) -> list[str]:
    """A line for each wrong field: its dotted name, what is wrong, and what was given."""
    return [_describe(problem) for problem in error.errors()]


def _describe(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"]) or "config"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "there is no such field" + _did_you_mean(problem["loc"])
    elif problem["type"] == "missing":
        message = "is required"
    elif problem["type"] != "secret" and not isinstance(problem.get("input"), dict | list | BaseModel):
        message += f" (got {_short(repr(problem['input']))})"
    return " ".join(f"{_short(name)}: {message}".split())


def _short(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _did_you_mean(location: tuple[str | int, ...]) -> str:
    fields: Any = GenerateConfig.model_fields
    for part in location[:-1]:
        annotation = fields[part].annotation if part in fields else None
        fields = getattr(annotation, "model_fields", {})
    return _nearest(str(location[-1]), fields)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _flags(arguments: list[str]) -> dict[str, Any]:
    """What the flags were given, by their dotted names: text, or a list of texts where a flag can be repeated."""
    parser = _Parser(
        prog="python flows/generate.py",
        description=inspect.getdoc(CommandLine),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    CliSettingsSource(CommandLine, root_parser=parser)  # adds a flag for every field; values are read here
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
        _refuse(_unknown(unknown, [flag for action in shown for flag in action.option_strings]))
    return vars(given)


def _unknown(arguments: list[str], flags: list[str]) -> list[str]:
    """A line for each flag that does not exist; where all exist, for the first value that belongs to none."""
    wrong = [word.partition("=")[0] for word in arguments if word.startswith("-") and word.strip("-")[:1].isalpha()]
    if not wrong:
        return [f"{_short(repr(arguments[0]))} belongs to no flag: each takes one value, and a list's is repeated"]
    return [f"{_short(flag)}: there is no such flag{_nearest_flag(flag, flags)}" for flag in wrong]


def _nearest_flag(flag: str, flags: list[str]) -> str:
    """First the field without its section, then the flag's beginning: both are far from the whole name."""
    for near in (
        [known for known in flags if known.rpartition(".")[2] == flag.strip("-")],
        [known for known in flags if "." in flag and known.startswith(flag)],
    ):
        if near:
            return f"; did you mean {' or '.join(near[:MOST_NAMED])}?"
    return _nearest(flag, flags)


def _flag_values(flags: dict[str, Any]) -> dict[FieldPath, Any]:
    """The flags' values by the paths of their fields; a field's own flag wins over its section's."""
    values: dict[FieldPath, Any] = {}
    wrong = []
    for name in sorted(flags, key=lambda name: name.count(".")):
        try:
            values |= _read_flag(tuple(name.split(".")), flags[name])
        except ValueError as error:
            wrong.append(f"--{name}: {error}")
    if wrong:
        _refuse(wrong)
    return values


def _read_flag(path: FieldPath, given: str | list[str]) -> dict[FieldPath, Any]:
    """What a flag sets, for pydantic to check and convert: its field, or the fields that a section's JSON names.

    Raises ValueError for a list or mapping that is none.
    """
    kind = _kind(path)
    if given in (NONE, [NONE]):
        return {path: None}
    if isinstance(given, list) and get_origin(kind) is dict:
        return {path: {name: value for text in given for name, value in _mapping(text).items()}}
    if isinstance(given, list):
        return {path: [item for text in given for item in _items(text, commas=path not in FREE_TEXT)]}
    if hasattr(kind, "model_fields"):
        return {(*path, name): value for name, value in _mapping(given).items()}
    return {path: given}


def _kind(path: FieldPath) -> Any:
    """The section, `list[…]` or `dict[…]` that a field is, or is unless it is None; else its annotation."""
    kind: Any = GenerateConfig
    for name in path:
        annotation = kind.model_fields[name].annotation
        kinds = (annotation, *get_args(annotation))
        several = (kind for kind in kinds if hasattr(kind, "model_fields") or get_origin(kind) in (list, dict))
        kind = next(several, annotation)
    return kind


def _mapping(text: str) -> dict[str, Any]:
    """A JSON object, or one `key=value`."""
    key, is_pair, rest = text.partition("=")
    if is_pair and key.isidentifier():
        return {key: _json_or_text(rest)}
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"""must be JSON, such as '{{"key": "value"}}': {error}""") from None
    if not isinstance(value, dict):
        raise ValueError("""must be a JSON object, such as '{"key": "value"}'""")
    return value


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _items(text: str, commas: bool) -> list[Any]:
    """A JSON list's items. Any other text is one item as it is, spaces and quotes too, or `commas` part several."""
    try:
        value = json.loads(text, strict=False)  # the shell may have made newlines of \n
    except (ValueError, RecursionError) as error:
        if text.startswith('["'):
            raise ValueError(f"""must be text or a JSON list, such as '["a", "b"]': {error}""") from None
        value = None
    if isinstance(value, list):
        return value
    return list(text.split(",")) if commas else [text]


def _overlaid(values: dict[str, Any], flags: dict[FieldPath, Any]) -> dict[str, Any]:
    """The YAML's values with the flags' in their places."""
    if any(path[: len(STRUCTURED)] == STRUCTURED for path in flags):
        values = _without_structured(values)
    for path, value in flags.items():
        values = _with(values, path, value)
    return values


def _without_structured(values: dict[str, Any]) -> dict[str, Any]:
    """Of structured's fields one is set, so a flag for one of them replaces whichever the YAML sets."""
    section = values.get(STRUCTURED[0])
    given = section.get(STRUCTURED[1]) if isinstance(section, dict) else None
    if not isinstance(given, dict):
        return values
    return _with(values, STRUCTURED, {name: given[name] for name in given if name not in StructuredConfig.model_fields})


def _with(values: dict[str, Any], path: FieldPath, value: Any) -> dict[str, Any]:
    """A copy with the value at the path; what is no section there stays, to be named as wrong."""
    name, rest = path[0], path[1:]
    if not rest:
        return {**values, name: value}
    section = {} if values.get(name) is None else values[name]
    return {**values, name: _with(section, rest, value) if isinstance(section, dict) else section}


def _read_yaml(path: str | None) -> dict[str, Any]:
    if not path:
        return {}
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # noqa: S506  (a SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        _refuse([f"--config: {path} cannot be read: {error}"])
    except RecursionError:
        _refuse([f"--config: {path} is nested too deeply"])
    except Exception as error:  # the parser's own errors, and what odd scalars (a number of 5,000 digits) make it raise
        _refuse([f"--config: {path} is not YAML: {_short(' '.join(str(error).split()))}"])
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        _refuse([f"--config: {path} must hold the config's sections (model, dataset, …)"])
    return values


class _Loader(yaml.SafeLoader):
    """A key that is there twice is refused: one of its two values would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"{sorted(twice)[0]} is there twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))


def _refuse(lines: list[str]) -> NoReturn:
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(EXIT_CONFIG)
