"""Checks of config values that need more than a type: what passes here cannot make a run fail, or wait, later on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_SECRET = re.compile(r"(^|_)(api_?key|secret|password|passwd|credentials?|(hf|access|auth|bearer)_token)($|_)", re.I)
_TEMPLATE_CALL = {
    *("conversation", "messages", "tools", "add_generation_prompt"),
    *("chat_template", "tokenize", "return_dict", "return_tensors"),
}
"""What rendering a prompt passes itself, or relies on."""


def check_text(value: Any) -> Any:
    """Text that files, other programs and JSON can hold. Raises ValueError."""
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("holds a NUL character")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("is no valid Unicode")
    return value


def check_no_secrets(arguments: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError where a name says that its value is secret: the config is stored with the results."""
    for name in arguments:
        if _SECRET.search(name):
            raise ValueError(f"{name} must not be here: secrets come from the environment (HF_TOKEN and the like)")
    return arguments


def check_template_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError for names that every call of a chat template has already: each record would fail."""
    for name in sorted(_TEMPLATE_CALL & arguments.keys()):
        raise ValueError(f"{name} must not be here: prompts are rendered with their own")
    return arguments


def check_template(source: str) -> None:
    """Raises ValueError where a Jinja2 template cannot be compiled."""
    from jinja2 import TemplateSyntaxError

    from tasks.prompts.template import compiled

    try:
        compiled(source)
    except TemplateSyntaxError as error:
        raise ValueError(f"template: line {error.lineno}: {error.message}") from error
    except (RecursionError, ValueError, ArithmeticError, TypeError) as error:
        raise ValueError(f"template: cannot be compiled: {type(error).__name__}: {error}") from error


def check_pattern(pattern: str) -> None:
    """Raises ValueError for what is no regular expression."""
    import regex

    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    except (RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"is too large a regular expression ({type(error).__name__})") from error


def check_schema(schema: dict[str, Any]) -> None:
    """Raises ValueError for what is no JSON schema, or points outside itself: nothing is fetched to check an answer."""
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        validator_for(schema).check_schema(schema)
        resolver = Registry().resolver_with_root(Resource.from_contents(schema, DRAFT202012))
        for reference in _references(schema):
            resolver.lookup(reference)
    except SchemaError as error:
        raise ValueError(f"is no JSON schema: {error.message}") from error
    except Unresolvable as error:
        raise ValueError(f"$ref {error.ref!r} is not in the schema itself") from error
    except Exception as error:
        raise ValueError(f"is no JSON schema: {type(error).__name__}: {error}") from error


def _references(part: Any) -> Iterator[str]:
    parts = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for name, value in parts:
        if name in ("$ref", "$dynamicRef") and isinstance(value, str):
            yield value
        else:
            yield from _references(value)
