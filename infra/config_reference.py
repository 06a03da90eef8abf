"""Writes docs/config.md: every field of the config, from the one model that also makes the form and the flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.config import GenerateConfig

PAGE = Path(__file__).parents[1] / "docs/config.md"
TITLE = """# The config

Every field, written by `python infra/config_reference.py`. In YAML it stands in its section; as a flag it is
`--section.field VALUE`, and flags win over the YAML. A field without a default is the model's or vLLM's own.
"""
Schema = dict[str, Any]


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")


def render() -> str:
    """The page: a table for each section of the config."""
    schema = GenerateConfig.model_json_schema()
    parts = [TITLE]
    for name, field in schema["properties"].items():
        section = _resolve(schema, field)
        lines = [f"| `{name}.` | values | default | meaning |", "| --- | --- | --- | --- |", *_rows(schema, section)]
        parts += [f"## {name}\n\n{' '.join(section['description'].split())}\n", "\n".join(lines) + "\n"]
    return "\n".join(parts)


def _rows(schema: Schema, section: Schema, prefix: str = "") -> list[str]:
    rows = []
    for name, field in section["properties"].items():
        nested = _resolve(schema, field)
        if "properties" in nested:
            rows += _rows(schema, nested, f"{prefix}{name}.")
            continue
        required = name in section.get("required", ())
        default = "required" if required else _default(field.get("default"))
        cells = [f"`{prefix}{name}`", _values(field), default, field.get("description", "")]
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    return rows


def _default(value: Any) -> str:
    return "" if value in (None, [], {}) else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _values(field: Schema) -> str:
    """What a field takes, in words."""
    if "anyOf" in field:
        return " or ".join(_values(kind) for kind in field["anyOf"] if kind != {"type": "null"})
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    match field.get("type"):
        case "array":
            return f"list of {_values(field['items'])}" if "items" in field else "list"
        case "object":
            return "mapping"
        case kind:
            return {"string": "text", "number": "number", "integer": "integer", "boolean": "yes or no"}.get(kind, "any")


def _resolve(schema: Schema, field: Schema) -> Schema:
    """The section that a field refers to, or the field itself."""
    kinds = [field, *field.get("anyOf", []), *field.get("allOf", [])]
    name = next((kind["$ref"].rpartition("/")[2] for kind in kinds if "$ref" in kind), None)
    return schema["$defs"][name] if name else field


if __name__ == "__main__":
    main()
