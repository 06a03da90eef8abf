"""What a model family's format must do: a conversation into what the engine is fed, and its completion into fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from tasks.prompts.conversation import Conversation
from tasks.records import Json


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the engine is fed for one record.

    `text` is the prompt as the model sees it, written to the row. `token_ids` are fed as they are; for a prompt with
    media they hold one placeholder an item, which the engine expands. `length` counts tokens with media expanded.
    `multi_modal_data` and `mm_processor_kwargs` are vLLM's; `media_bytes` is their size in memory.
    """

    text: str
    token_ids: list[int]
    length: int
    multi_modal_data: Json = field(default_factory=dict)
    mm_processor_kwargs: Json = field(default_factory=dict)
    media_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample as the engine made it. `text` is empty where the engine has no tokenizer (harmony).

    `structured`: `sampling.structured` held from the first token on, so that there was no room for reasoning.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    structured: bool = False


@dataclass(frozen=True, slots=True)
class Parsed:
    """A completion's fields. `extra` are further columns of the row, such as tool_calls."""

    predict: str
    reasoning: str | None
    finish_reason: str
    extra: Json = field(default_factory=dict)


class PromptFormat(Protocol):
    """One model family's format. Made once an engine; its methods are called from several threads at once."""

    takes_media: bool
    """Whether records may carry images and videos."""
    engine_args: Json
    """vLLM engine arguments that this format needs."""
    sampling_args: Json
    """vLLM SamplingParams arguments that this format needs, such as stop_token_ids; the user's own are added."""

    def render(self, conversation: Conversation) -> Prompt:
        """Raises RecordError for a conversation this format cannot express."""

    def parse(self, completion: Completion, prompt: Prompt) -> Parsed:
        """Never raises: what cannot be parsed is kept as text, with a finish_reason that tells."""
