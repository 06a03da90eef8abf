"""The command line: `--config FILE.yaml` and a flag for every field of the config, flags over YAML over defaults.

Prefect is not imported here, so that `--help` and a wrong field answer at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from tasks.config import GenerateConfig

EXIT_CONFIG = 2
MOST_SHOWN = 200
"""Characters of a wrong value that are shown."""


class CommandLine(BaseSettings, GenerateConfig):
    """Generate a dataset: a model, a dataset, and what to make of them. Everything can stand in a YAML file."""

    model_config = SettingsConfigDict(
        cli_prog_name="python flows/generate.py",
        cli_parse_none_str="null",
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_use_class_docs_for_groups=True,
        protected_namespaces=(),
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    config: str | None = None
    """YAML file with any of the fields below; flags win over it."""

    arguments: ClassVar[list[str]] = []
    from_yaml: ClassVar[dict[str, Any]] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the YAML; no environment variables or files, where nobody would look for a setting."""
        del env_settings, dotenv_settings, file_secret_settings
        cli: PydanticBaseSettingsSource = CliSettingsSource(settings_cls, cli_parse_args=cls.arguments)
        return cli, init_settings


def parse(arguments: list[str]) -> GenerateConfig:
    """The config that the arguments ask for. Exits with 2, each wrong field named on one line, or 0 after --help."""
    CommandLine.arguments = arguments
    values = _read_yaml(_config_file(arguments))
    try:
        command_line = CommandLine(**values)
    except ValidationError as error:
        _refuse(wrong_fields(error))
    except RecursionError:
        _refuse(["config: it is nested too deeply"])
    return GenerateConfig.model_validate(command_line.model_dump(exclude={"config"}))


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
    import difflib

    fields: Any = GenerateConfig.model_fields
    for part in location[:-1]:
        annotation = fields[part].annotation if part in fields else None
        fields = getattr(annotation, "model_fields", {})
    near = difflib.get_close_matches(str(location[-1]), list(fields), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _config_file(arguments: list[str]) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    known, _ = parser.parse_known_args(arguments)
    return str(known.config) if known.config else None


def _read_yaml(path: str | None) -> dict[str, Any]:
    if path is None:
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
