"""How the config's sections look as a form (Prefect's UI makes one of their JSON schemas): short titles, ranges in
words, and plain inputs that may be left empty where the config says None."""

from __future__ import annotations

from typing import Any

from pydantic.fields import ComputedFieldInfo, FieldInfo

TITLES = {
    "api_key_env": "API key's variable",
    "base_urls": "Servers (base URLs)",
    "original_max_position_embeddings": "Original context length",
    "regex": "Regular expression",
    "system": "System prompt",
    "answer_pattern": "Answer's regular expression",
    "answer_schema": "Answer's JSON schema",
    "cache_dir": "Cache folder",
    "chat_template_kwargs": "Chat template arguments",
    "chunk_seconds": "Seconds between checkpoints",
    "dtype": "Number format (dtype)",
    "enforce_eager": "Eager mode",
    "extra": "More vLLM arguments",
    "fps": "Frames a second",
    "gpu_memory_utilization": "Share of GPU memory",
    "gpu_limit": "Prefect limit for GPUs",
    "id_field": "ID field",
    "ignore_eos": "Ignore the end token",
    "include_stop_str_in_output": "Keep the stop string",
    "json_schema": "JSON schema",
    "keep_fields": "Fields to keep",
    "limit_mm_per_prompt": "Media items a prompt",
    "max_model_len": "Context length",
    "max_num_batched_tokens": "Most tokens a step",
    "max_num_seqs": "Most sequences at once",
    "max_tokens": "Most tokens",
    "min_p": "Min-p",
    "min_tokens": "Fewest tokens",
    "n": "Samples a record (n)",
    "pipeline_parallel_size": "Pipeline parallel size",
    "ray_address": "Ray address",
    "ray_resources": "Ray resources an engine",
    "replicas": "Engines (replicas)",
    "source": "Model",
    "stop": "Stop strings",
    "stop_token_ids": "Stop token ids",
    "structured": "Structured output",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "wait_for_gpus": "Wait for GPUs",
    "yarn": "YaRN",
}


def form_title(name: str, _field: FieldInfo | ComputedFieldInfo) -> str:
    """A field's title: few words, no underscores."""
    return TITLES.get(name) or name.replace("_", " ").capitalize()


def form_schema(schema: dict[str, Any]) -> None:
    """Make a section's JSON schema one that reads well as a form."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position  # PostgreSQL keeps no order of a document's keys
        if "const" in field:
            field["enum"] = [field.pop("const")]
        _may_be_empty(field)
        _describe(field)


def _may_be_empty(field: dict[str, Any]) -> None:
    """`int | None = None` as a plain input; left empty it is not sent, which is None.

    Prefect's form would show a choice between `int` and `None` and no input. It stays for booleans, whose off is not
    empty, and for nested sections.
    """
    kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
    if field.get("default", ...) is not None or len(kinds) != 1 or "$ref" in kinds[0] or kinds[0]["type"] == "boolean":
        return
    del field["anyOf"], field["default"]
    field.update(kinds[0])


def _describe(field: dict[str, Any]) -> None:
    text = " ".join(field.get("description", "").replace("`", "").split())
    if words := _range(field):
        text += f" {words}."
    if text:
        field["description"] = text


def _range(field: dict[str, Any]) -> str:
    """The range in words, where it tells something."""
    low, high, above = field.get("minimum"), field.get("maximum"), field.get("exclusiveMinimum")
    if high is not None:
        return f"From {low:g} to {high:g}" if low is not None else f"Above {above:g}, at most {high:g}"
    if low not in (None, 0, 1):
        return f"At least {low:g}"
    return f"Above {above:g}" if above else ""
