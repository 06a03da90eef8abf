"""GenerateConfig: the one model behind the Prefect UI form, the YAML file and the command line's flags.

Nothing heavy is imported here: `python flows/generate.py --help` loads this file and little else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tasks.config_base import Place, Rate, Section
from tasks.config_checks import (
    check_pattern,
    check_schema,
    check_template,
    check_template_arguments,
)
from tasks.config_engine import EngineConfig as EngineConfig
from tasks.config_engine import YarnConfig as YarnConfig
from tasks.records import GENERATED_COLUMNS

GREEDY = 1e-5
"""A temperature below this is 0: model cards mean that by 1e-6."""


class ModelConfig(Section):
    """The model, and how it gets here."""

    source: Place
    """Hub id (`Qwen/Qwen3-8B`), local folder, or `s3://bucket/folder/`. With engine.kind `openai`: the model's name on
    the servers, or `auto`: the one that they serve."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; pinned to its commit when downloaded. Default: the main branch."""
    downloader: Literal["auto", "hub", "hfd"] = "auto"
    """`hub`: huggingface_hub; `hfd`: aria2c with many connections; `auto`: hfd where aria2c is installed and a mirror
    is set, else hub."""
    endpoint: Place | None = None
    """A mirror of the hub, such as https://hf-mirror.com. Default: HF_ENDPOINT, then the hub itself."""
    cache_dir: str | None = None
    """Folder that downloaded models are kept in. Default: the Hugging Face cache."""
    include: list[str] = Field(default_factory=list)
    """Download only files that match one of these patterns (`*.safetensors`). Default: the files that vLLM reads."""
    exclude: list[str] = Field(default_factory=list)
    """Do not download files that match one of these patterns."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave off unless you have read that code."""

    @field_validator("source")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must name a hub id, a local folder or an s3:// folder")
        return value


class DatasetConfig(Section):
    """The input dataset, and which fields of a record mean what."""

    path: Place
    """File, glob or folder; local, s3:// or hf://datasets/…; .jsonl, .jsonl.gz, .jsonl.zst, .parquet, .csv.
    What lies in an output.path inside it is no input."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use only the first so many records."""
    messages_field: str = "messages"
    """Field with the conversation: a list of {role, content}; a last assistant turn is the label."""
    prompt_field: str = "prompt"
    """Field with the prompt, for records without a conversation."""
    label_field: str | None = None
    """Field with the label. Default: `label`, then `answer`, then the conversation's last assistant turn."""
    images_field: str = "images"
    """Field with the record's images: a path, URL or data URI, or a list of them."""
    videos_field: str = "videos"
    """Field with the record's videos: a file, or a list of files or of lists of frames."""
    id_field: str = "id"
    """Field copied to the samples' `id`."""
    shard_size: Annotated[int, Field(ge=1)] | None = None
    """Records a shard. Default: a power of two that makes at most some hundreds of shards, minutes long each."""


class PromptConfig(Section):
    """How a record becomes the model's prompt."""

    system: str | None = None
    """System prompt; replaces the record's own system turn."""
    template: str | None = None
    """Jinja2 template over the record's fields (and `prompt`, the record's own prompt): it makes the last user turn."""
    format: Literal["auto", "chat", "raw", "vision", "harmony"] = "auto"
    """`chat`: the model's chat template; `raw`: the prompt as it is; `vision`: Qwen-VL; `harmony`: gpt-oss;
    `auto`: by the model."""
    enable_thinking: bool | None = None
    """Passed to the chat template (Qwen3). Default: the template's own."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Any other arguments for the chat template, such as {"reasoning": "brief"}."""
    reasoning_effort: Literal["low", "medium", "high"] | None = None
    """gpt-oss: how long it reasons. Default: medium."""
    min_pixels: Annotated[int, Field(ge=1)] | None = None
    """Vision: images with fewer pixels are scaled up to so many."""
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    """Vision: images with more pixels are scaled down to so many."""
    fps: Annotated[float, Field(gt=0)] | None = None
    """Vision: frames a second that are taken from a video. Default: qwen_vl_utils' 2."""
    allow_remote_media: bool = False
    """Vision: let records name media by http(s):// or s3://. Off, such a record becomes an error row."""
    media_roots: list[str] = Field(default_factory=list)
    """Vision: folders besides the dataset's own that local media may lie in; `/` allows any."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _beside_what_is_passed(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return check_template_arguments(arguments)

    @model_validator(mode="after")
    def _thinking_is_said_once(self) -> PromptConfig:
        if self.enable_thinking is not None and "enable_thinking" in self.chat_template_kwargs:
            raise ValueError("enable_thinking stands in chat_template_kwargs too: leave it out of one of them")
        return self

    @model_validator(mode="after")
    def _template_compiles(self) -> PromptConfig:
        if self.template is not None:
            check_template(self.template)
        return self

    @model_validator(mode="after")
    def _pixels_in_order(self) -> PromptConfig:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels ({self.min_pixels}) is larger than max_pixels ({self.max_pixels})")
        return self


class StructuredConfig(Section):
    """Structured output: exactly one of the three."""

    json_schema: dict[str, Any] | None = None
    """The completion is JSON that fits this schema."""
    regex: str | None = None
    """The completion matches this regular expression."""
    choice: list[str] | None = None
    """The completion is one of these strings."""

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredConfig:
        given = [name for name in ("json_schema", "regex", "choice") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"set exactly one of json_schema, regex, choice (set: {', '.join(given) or 'none'})")
        return self

    @field_validator("json_schema")
    @classmethod
    def _schema_is_one(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            check_schema(value)
        return value

    @field_validator("regex")
    @classmethod
    def _pattern_compiles(cls, value: str | None) -> str | None:
        check_pattern(value or "")
        return value

    @field_validator("choice")
    @classmethod
    def _something_to_choose(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and not all(value or [""]):
            raise ValueError("needs strings to choose from, none of them empty")
        return value


class SamplingConfig(Section):
    """Sampling settings by vLLM's names; unset fields take the model's generation_config.json, then vLLM's defaults."""

    n: Annotated[int, Field(ge=1, le=4096)] = 1
    """Samples a record."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus sampling."""
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """Only the k likeliest tokens; -1 or 0: all."""
    min_p: Rate | None = None
    """Only tokens at least so likely, relative to the likeliest."""
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    """Above 1: repeated tokens are less likely."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Above 0: tokens that occurred are less likely."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Above 0: tokens are less likely the more often they occurred."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens a completion. Default: what the context leaves."""
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    """Fewest tokens a completion."""
    stop: list[str] = Field(default_factory=list)
    """Strings that end a completion, such as `</answer>`."""
    include_stop_str_in_output: bool = False
    """Keep the stop string in `predict`."""
    stop_token_ids: list[int] = Field(default_factory=list)
    """Token ids that end a completion."""
    ignore_eos: bool = False
    """Generate on to max_tokens (benchmarks)."""
    max_tokens_field: str | None = None
    """Field of the record with a max_tokens of its own; it wins over max_tokens."""
    seed: int | None = None
    """With a seed, each sample's own is derived from it, original_index and sample_id, so a rerun asks for the same.
    Default: unseeded, which is faster on GPUs."""
    structured: StructuredConfig | None = None
    """Constrain the output to a JSON schema, a regular expression or a choice."""

    @field_validator("stop")
    @classmethod
    def _something_to_stop_at(cls, strings: list[str]) -> list[str]:
        if "" in strings:
            raise ValueError("must hold no empty string: it would be found in every text")
        return strings

    @field_validator("stop_token_ids")
    @classmethod
    def _ids_of_tokens(cls, ids: list[int]) -> list[int]:
        if wrong := [number for number in ids if number < 0]:
            raise ValueError(f"must hold token ids, which are 0 and more, not {wrong[0]}")
        return ids

    @model_validator(mode="after")
    def _tokens_in_order(self) -> SamplingConfig:
        if self.min_tokens and self.max_tokens and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) is larger than max_tokens ({self.max_tokens})")
        return self

    @model_validator(mode="after")
    def _greedy_samples_are_alike(self) -> SamplingConfig:
        if self.temperature is not None and self.temperature < GREEDY and self.n > 1:
            raise ValueError(
                f"n is {self.n} with temperature {self.temperature:g}, where samples are alike: lower n or raise it"
            )
        return self


class OutputConfig(Section):
    """Where the dataset goes, and in what form."""

    path: Place
    """Folder; local or s3://. A rerun with the same folder does only what is missing. One that holds the dataset's own
    data.jsonl (.jsonl.zst, .parquet), or one that no run made, is refused."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """Of the merged files: `data.jsonl` or `data.parquet`. Changing it generates nothing again."""
    compression: Literal["zst"] | None = None
    """`zst`: `data.jsonl.zst`; of Parquet the codec (Zstandard). Default: none; of Parquet Snappy."""
    keep_fields: list[str] = Field(default_factory=list)
    """Fields of the record that are copied to its samples. `id` and `label` are there anyway."""
    retry_errors: bool = False
    """In a rerun, try again what became error rows: an image was mended, a server is back. Samples stay as they are."""
    chunk_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Seconds between two checkpoints of a shard under way: at most so much work is lost in a crash."""

    @field_validator("keep_fields")
    @classmethod
    def _beside_what_is_made(cls, names: list[str]) -> list[str]:
        for name in names:
            if name in GENERATED_COLUMNS:
                raise ValueError(f"'{name}' is a column of the results: rename the record's, or make it label_field")
        return names

    @field_validator("path")
    @classmethod
    def _on_disk_or_s3(cls, value: str) -> str:
        if "://" in value and not value.startswith(("s3://", "file://")):
            raise ValueError("must be a folder of this machine or s3://bucket/folder")
        return value


class ValidationConfig(Section):
    """Gates on the finished dataset; one that fails, fails the run (the files stay)."""

    max_error_rate: Rate = 0.0
    """Most samples that may be errors, as a share of all."""
    max_truncated_rate: Rate = 1.0
    """Most samples that may be cut by max_tokens, as a share of all."""
    max_empty_rate: Rate = 1.0
    """Most samples that may be empty, as a share of all."""
    answer_format: Literal["none", "par", "regex", "json_schema"] = "none"
    """What `predict` must look like: `par`: `<answer>…</answer>`; `regex`: answer_pattern; `json_schema`:
    answer_schema."""
    answer_pattern: str | None = None
    """For `regex`: its first group (or the whole match) is the answer."""
    answer_schema: dict[str, Any] | None = None
    """For `json_schema`: the schema."""
    max_format_error_rate: Rate = 1.0
    """Most samples that may break answer_format, as a share of all."""
    label_match: Literal["none", "exact", "number", "regex"] = "none"
    """How `answer` is compared with `label`: as text, as the last number (or fraction) in it, or with the label as a
    pattern."""
    min_accuracy: Rate = 0.0
    """Least share of samples whose answer matches the label."""

    @model_validator(mode="after")
    def _format_has_its_field(self) -> ValidationConfig:
        needs = {"regex": "answer_pattern", "json_schema": "answer_schema"}.get(self.answer_format)
        if needs and getattr(self, needs) is None:
            raise ValueError(f"answer_format '{self.answer_format}' needs {needs}")
        return self

    @model_validator(mode="after")
    def _gates_are_measured(self) -> ValidationConfig:
        if self.max_format_error_rate < 1 and self.answer_format == "none":
            raise ValueError("max_format_error_rate needs answer_format: without one every answer will do")
        if self.min_accuracy > 0 and self.label_match == "none":
            raise ValueError("min_accuracy needs label_match: how answers are compared with labels")
        return self

    @field_validator("answer_pattern")
    @classmethod
    def _pattern_compiles(cls, value: str | None) -> str | None:
        check_pattern(value or "")
        return value

    @field_validator("answer_schema")
    @classmethod
    def _schema_is_one(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            check_schema(value)
        return value


class GenerateConfig(Section):
    """A whole run: what generates what from what, and when the result counts as good."""

    model: ModelConfig
    dataset: DatasetConfig
    prompt: PromptConfig = PromptConfig()
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    output: OutputConfig
    validation: ValidationConfig = ValidationConfig()

    @model_validator(mode="before")
    @classmethod
    def _as_it_is_meant(cls, values: Any) -> Any:
        """A section whose fields are all commented out is null; keys such as `x-common` hold a YAML's anchors; servers
        know their model."""
        if not isinstance(values, dict):
            return values
        kept = {name: value for name, value in values.items() if not str(name).startswith("x-")}
        kept |= {name: {} for name in cls.model_fields if name in kept and kept[name] is None}
        engine = kept.get("engine")
        if isinstance(engine, dict) and engine.get("kind") == "openai" and kept.get("model", {}) == {}:
            kept["model"] = {"source": "auto"}
        return kept
