"""The config's section `engine`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tasks.config_base import Place, Section
from tasks.config_checks import check_no_secrets


class YarnConfig(Section):
    """YaRN: a longer context than the model was trained for."""

    factor: Annotated[float, Field(gt=1)]
    """New maximum / original maximum."""
    original_max_position_embeddings: Annotated[int, Field(ge=1)]
    """The context the model was trained for, in tokens."""


_SERVERS_OWN = (
    *("pool", "replicas", "tensor_parallel_size", "pipeline_parallel_size", "max_model_len", "max_num_batched_tokens"),
    *("gpu_memory_utilization", "dtype", "quantization", "enforce_eager", "enable_prefix_caching", "yarn"),
    *("limit_mm_per_prompt", "ray_address", "ray_resources", "gpu_limit"),
)


_NOT_EXTRA = {"model", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"}


class EngineConfig(Section):
    """The engines: how many, on what, and vLLM's own arguments by their names."""

    kind: Literal["vllm", "openai"] = "vllm"
    """`vllm`: engines of our own; `openai`: running servers that speak OpenAI's protocol, such as `vllm serve`."""
    base_urls: list[Place] = Field(default_factory=list)
    """For `openai`: the servers, such as http://gpu-1:8000/v1. All serve the same model; each is an engine."""
    api_key_env: str | None = None
    """For `openai`: the environment variable that holds the servers' key. The key itself stands in no config."""
    pool: Literal["local", "ray"] = "local"
    """`local`: a process for each engine on this machine; `ray`: an actor for each on a Ray cluster."""
    replicas: Annotated[int, Field(ge=1)] | None = None
    """Engines. Default: all free GPUs / GPUs a replica, and 1 on a CPU; on a Ray cluster what it has room for, more as
    nodes join."""
    wait_for_gpus: bool = True
    """Wait where other runs on this machine hold its GPUs; false: fail."""
    gpu_limit: str | None = None
    """Prefect global concurrency limit to take the engines' GPUs from before they start, such as `gpu`."""
    ray_address: str | None = None
    """Ray cluster: `HOST:6379` from one of its nodes, `ray://HOST:10001` from elsewhere. Default: RAY_ADDRESS, then
    the cluster that this machine is a node of."""
    ray_resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """What an engine takes of its Ray node besides its GPUs, such as {"CPU": 8} or a resource of your own. Default on
    a cluster without GPUs: all CPUs of its smallest node."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """GPUs that share each layer of one replica."""
    pipeline_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Groups of GPUs that hold successive layers of one replica."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    """Prompt and completion together, in tokens. Default: the model's."""
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    """Most sequences generated at once. Default: vLLM's for the device; of a server, what it is found to take."""
    max_num_batched_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens a step. Default: vLLM's for the device."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the GPU's memory an engine may take. Default: vLLM's."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Weights and activations. `auto`: the model's own; float32 on a CPU without bfloat16 instructions."""
    quantization: str | None = None
    """vLLM's quantization method, such as `fp8`. Default: the model's own."""
    enforce_eager: bool | None = None
    """No CUDA graphs and no compilation: a quicker start, slower generation. Default: on for CPUs only."""
    enable_prefix_caching: bool = True
    """Share the computed prefix of prompts that begin alike."""
    yarn: YarnConfig | None = None
    """Stretch the context by YaRN."""
    limit_mm_per_prompt: dict[str, int] = Field(default_factory=dict)
    """Most media items a prompt, such as {"image": 8}. Default: vLLM's."""
    stall_timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds without a token, requests in flight, after which an engine counts as hung and is restarted. A server that
    has no /metrics is given twelve times as long: its tokens show with an answer only."""
    start_timeout: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds that an engine may take to be ready."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Any other vLLM engine argument by its name, such as {"kv_cache_dtype": "fp8"}. For `openai`: further fields of
    each request; null leaves one out."""

    @field_validator("base_urls")
    @classmethod
    def _plain_urls(cls, urls: list[str]) -> list[str]:
        from urllib.parse import urlsplit

        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("must be http(s):// URLs, such as http://127.0.0.1:8000/v1")
            if "," in url:
                raise ValueError("must be a list of URLs, one for each server, not text with commas")
            if parts.username or parts.password or parts.query or parts.fragment:
                raise ValueError("must hold no user, key or query: name the key's environment variable in api_key_env")
        if len(set(urls)) != len(urls):
            raise ValueError("name a server twice")
        return urls

    @model_validator(mode="after")
    def _kind_has_its_fields(self) -> EngineConfig:
        if self.pool == "ray" and self.gpu_limit and self.replicas is None:
            raise ValueError("gpu_limit needs replicas on a Ray cluster: how many GPUs to take")
        if self.kind == "vllm":
            if self.base_urls or self.api_key_env:
                raise ValueError("base_urls and api_key_env belong to kind 'openai'")
            return self
        if not self.base_urls:
            raise ValueError("kind 'openai' needs base_urls, such as [http://127.0.0.1:8000/v1]")
        fields = type(self).model_fields
        for name in _SERVERS_OWN:
            if getattr(self, name) != fields[name].get_default(call_default_factory=True):
                raise ValueError(f"{name} does not go with kind 'openai', whose servers run elsewhere: leave it out")
        return self

    @field_validator("extra")
    @classmethod
    def _no_secrets(cls, extra: dict[str, Any]) -> dict[str, Any]:
        return check_no_secrets(extra)

    @model_validator(mode="after")
    def _extra_is_beside_the_fields(self) -> EngineConfig:
        if self.kind == "vllm":
            for name in _NOT_EXTRA & self.extra.keys():
                raise ValueError(
                    f"extra: {name} must not be here: engines get their model and GPUs by the config's fields"
                )
            if self.yarn and "hf_overrides" in self.extra:
                raise ValueError(
                    "yarn and extra's hf_overrides are the same setting of vLLM: put all into hf_overrides"
                )
        return self

    @property
    def gpus_per_replica(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size
