"""The config in vLLM's terms: engine arguments and sampling arguments, as plain dicts. Nothing of vLLM is imported."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tasks.config import GREEDY, EngineConfig, SamplingConfig, YarnConfig
from tasks.engines.base import EngineSpec
from tasks.records import Json

_SAME_NAME = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "quantization",
    "enforce_eager",
    "enable_prefix_caching",
)
SAMPLING_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "max_tokens",
    "min_tokens",
)


def engine_args(spec: EngineSpec, format_args: Json, cpu: bool) -> Json:
    """Arguments for vLLM's EngineArgs. `extra` wins over our fields, `overrides` (gentler settings) over all."""
    engine = spec.config.engine
    args: Json = {
        "model": spec.model_path,
        "trust_remote_code": spec.config.model.trust_remote_code,
        "dtype": resolve_dtype(engine.dtype, cpu),
    }
    args |= {name: value for name in _SAME_NAME if (value := getattr(engine, name)) is not None}
    if cpu:
        args.setdefault("enforce_eager", True)
        if spec.config.sampling.seed is not None:
            # vLLM sets a seeded generator back after each partial prefill, which torch's CPU generator cannot do.
            args["enable_chunked_prefill"] = False
    if engine.limit_mm_per_prompt:
        args["limit_mm_per_prompt"] = engine.limit_mm_per_prompt
    if engine.yarn is not None:
        args["hf_overrides"] = yarn_overrides(spec.model_path, engine.yarn, spec.config.model.trust_remote_code)
    if spec.placement_group:
        args["distributed_executor_backend"] = "ray"
    return args | format_args | engine.extra | spec.overrides


def without_fused_all_reduce(args: Json) -> Json:
    """Tensor parallelism that adds up in steps of its own; what the user says of it in `engine.extra` stays."""
    given = args.get("compilation_config") or {}
    passes = {"fuse_allreduce_rms": False, **(given.get("pass_config") or {})}
    return {**args, "compilation_config": {**given, "pass_config": passes}}


def media_threads() -> Json:
    """Threads in which vLLM prepares images beside the engine; they rule out its cache of prepared ones.

    Few: two prepare a hundred photographs a second, and for each vLLM copies the tokenizer three times at the start,
    which takes a second or two each time.
    """
    return {"renderer_num_workers": max(2, min(4, (os.cpu_count() or 2) // 8)), "mm_processor_cache_gb": 0}


def sampling_args(config: SamplingConfig, defaults: Json, format_args: Json) -> Json:
    """Arguments for SamplingParams that all requests share: the model's defaults, the format's, then the user's."""
    args = dict(defaults)
    args |= {name: value for name in SAMPLING_SAME_NAME if (value := getattr(config, name)) is not None}
    if config.n == 1 and args.get("temperature", 1) < GREEDY:
        args["temperature"] = 0.0  # of 1e-6, as Qwen2.5-VL has it, vLLM makes 0.01
    if config.stop:
        args |= {"stop": config.stop, "include_stop_str_in_output": config.include_stop_str_in_output}
    if config.ignore_eos:
        args["ignore_eos"] = True
    args |= format_args
    stop_ids = {*defaults.get("stop_token_ids", ()), *config.stop_token_ids, *format_args.get("stop_token_ids", ())}
    if stop_ids:
        args["stop_token_ids"] = sorted(stop_ids)
    return args


def yarn_overrides(model_path: str, yarn: YarnConfig, trust_remote_code: bool = False) -> Json:
    """vLLM's `hf_overrides` for YaRN (transformers 5's `rope_parameters`), nested where the text model's config is.

    Of a model whose file has all in one (Qwen2.5-VL) the class tells: as it is loaded, its text model's is apart.
    """
    from transformers import AutoConfig

    loaded = AutoConfig.from_pretrained(model_path, local_files_only=True, trust_remote_code=trust_remote_code)
    config = json.loads(Path(model_path, "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    overrides: Json = {
        "rope_parameters": {
            **{name: value for name, value in rope.items() if name != "type"},
            "rope_type": "yarn",
            "rope_theta": rope.get("rope_theta") or text.get("rope_theta", 10000.0),
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
        },
        "max_position_embeddings": int(yarn.original_max_position_embeddings * yarn.factor),
    }
    return overrides if loaded.get_text_config() is loaded else {"text_config": overrides}


def resolve_dtype(dtype: str, cpu: bool) -> str:
    """`auto` on a CPU that has no bfloat16 instructions is float32, which is several times faster there."""
    if dtype == "auto" and cpu and not _cpu_has_bfloat16():
        return "float32"
    return dtype


def cpu_environment(engine: EngineConfig) -> dict[str, str]:
    """vLLM's environment variables for an engine on a CPU; what the user has set stays."""
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; unset, vLLM takes a large share of the memory
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # unset, one core is kept idle
    }
    if engine.gpus_per_replica == 1:
        # One process starts eight times sooner than three; on a CPU nothing is gained by the others.
        settings["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return {name: value for name, value in settings.items() if name not in os.environ}


def _cpu_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
