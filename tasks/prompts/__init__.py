"""Prompt formats by model family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from tasks.config import GREEDY, PromptConfig, SamplingConfig
from tasks.errors import RunError
from tasks.prompts.base import PromptFormat
from tasks.run_log import log

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


_HEEDED_BY = {
    "enable_thinking": ("chat", "vision"),
    "chat_template_kwargs": ("chat", "vision"),
    "reasoning_effort": ("harmony",),
    "min_pixels": ("vision",),
    "max_pixels": ("vision",),
    "fps": ("vision",),
}
"""The families that a field of `prompt` says something to."""


def require_fitting(model_path: str, prompt: PromptConfig, sampling: SamplingConfig) -> None:
    """Raise RunError for sampling settings that the model's format cannot follow, before an engine is started.

    What is merely of no use, such as prompt settings that say nothing to it, is told in the log.
    """
    family = detect_family(model_path) if prompt.format == "auto" else prompt.format
    for name, families in _HEEDED_BY.items():
        if family not in families and getattr(prompt, name) not in (None, {}):
            log.warning("prompt.%s says nothing to this model's format (%s): it has no effect", name, family)
    _warn_of_like_samples(model_path, sampling)
    for name in ("stop", "structured"):
        if family == "harmony" and getattr(sampling, name):
            raise RunError(
                f"sampling.{name}: gpt-oss is fed and read as harmony's token ids and knows no text to match: leave it "
                "out (a sample ends where harmony's own stop tokens say), or check answers by validation.answer_format"
            )


def _warn_of_like_samples(model_path: str, sampling: SamplingConfig) -> None:
    """The config sees to its own temperature; this is about the model's."""
    if sampling.n == 1 or sampling.temperature is not None:
        return
    path = Path(model_path, "generation_config.json")
    try:
        temperature = json.loads(path.read_text(encoding="utf-8")).get("temperature")
    except (OSError, ValueError, AttributeError):
        return  # there is none, or vLLM says what is wrong with it
    if isinstance(temperature, int | float) and temperature < GREEDY:
        log.warning(
            "sampling.temperature: the model's own is %g, where the %d samples of a record are nearly alike: set one",
            temperature, sampling.n,
        )  # fmt: skip


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
