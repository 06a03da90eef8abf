"""Prompt formats by model family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from tasks.config import PromptConfig, SamplingConfig
from tasks.errors import RunError
from tasks.prompts.base import PromptFormat

Family = Literal["chat", "raw", "vision", "harmony"]

VISION_MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
HARMONY_MODEL_TYPES = ("gpt_oss",)


def detect_family(model_path: str) -> Family:
    """The model's family, by its config.json and whether it has a chat template."""
    from tasks.prompts.chat import has_chat_template

    model_type = json.loads(Path(model_path, "config.json").read_text(encoding="utf-8")).get("model_type")
    if model_type in VISION_MODEL_TYPES:
        return "vision"
    if model_type in HARMONY_MODEL_TYPES:
        return "harmony"
    return "chat" if has_chat_template(model_path) else "raw"


def require_fitting(model_path: str, prompt: PromptConfig, sampling: SamplingConfig) -> None:
    """Raise RunError for sampling settings that the model's format cannot follow, before an engine is started."""
    family = detect_family(model_path) if prompt.format == "auto" else prompt.format
    for name in ("stop", "structured"):
        if family == "harmony" and getattr(sampling, name):
            raise RunError(
                f"sampling.{name}: gpt-oss is fed and read as harmony's token ids and knows no text to match: leave it "
                "out (a sample ends where harmony's own stop tokens say), or check answers by validation.answer_format"
            )


def make_format(
    model_path: str, config: PromptConfig, dataset_roots: list[str], trust_remote_code: bool = False
) -> PromptFormat:
    """The format for a model in a local folder; `prompt.format` overrides what the model's files say.

    `dataset_roots` are the folders that local media may be read from.
    """
    family = detect_family(model_path) if config.format == "auto" else config.format
    if family == "vision":
        from tasks.prompts.vision import VisionFormat

        return VisionFormat(model_path, config, dataset_roots, trust_remote_code)
    if family == "harmony":
        from tasks.prompts.harmony import HarmonyFormat

        return HarmonyFormat(model_path, config)
    from tasks.prompts.chat import ChatFormat, RawFormat

    if family == "chat":
        return ChatFormat(model_path, config, trust_remote_code)
    return RawFormat(model_path, trust_remote_code)
