"""The DAG: download the model, split the dataset, generate shard by shard, merge, validate, report.

    python flows/generate.py --config deployments/demo.yaml [--section.field VALUE …]

Runs with no Prefect server (an ephemeral one is started) and the same under one, from its UI or on a schedule.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Prefect reads its settings when it is imported. Offline nothing may wait for a telemetry server, and with an empty
# home the ephemeral server needs longer than its own 20 s.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
}.items():
    os.environ.setdefault(_name, _value)

if __name__ == "__main__":
    # This checkout's code, here and in the processes started from here, whichever one the environment was made for.
    _ROOT = str(Path(__file__).resolve().parents[1])
    sys.path.insert(0, _ROOT)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))

    # What Prefect did not get to tell a server that ends with the run is nobody's concern.
    os.environ.setdefault("PREFECT_INTERNAL_LOGGING_LEVEL", "CRITICAL")

    from flows.command_line import parse

    _CONFIG = parse(sys.argv[1:])  # before anything else is imported: --help and wrong fields answer at once

    from flows import early_stop, own_server
    from tasks.engines import spare

    early_stop.heed_signals()
    own_server.start_ahead()
    spare.start_ahead(_CONFIG)

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from prefect import flow
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import ValidationError

from flows.gpu_limit import gpu_limit
from flows.naming import model_name, run_name
from flows.watching import known_by, told, watching
from tasks.access import require_access
from tasks.config import (
    DatasetConfig,
    EngineConfig,
    GenerateConfig,
    ModelConfig,
    OutputConfig,
    PromptConfig,
    SamplingConfig,
    ValidationConfig,
)
from tasks.download_model import download_model
from tasks.engines.base import EngineSpec
from tasks.engines.gpu_figures import GpuFigures
from tasks.engines.gpu_locks import Gpus, NoGpus, gpus_for
from tasks.engines.launcher import Launcher
from tasks.engines.local_pool import LocalLauncher
from tasks.engines.pool import EnginePool
from tasks.engines.ray_cluster import require_ray
from tasks.engines.ray_pool import RayLauncher
from tasks.errors import RunError
from tasks.generate_shard import Job, find_whole, generate_shard
from tasks.inputs.columns import needed_columns
from tasks.inputs.roots import dataset_roots
from tasks.key import results_key
from tasks.merge_shards import merge_shards
from tasks.output_lock import output_lock
from tasks.progress import RunProgress
from tasks.prompts import require_fitting
from tasks.records import DatasetManifest, Json, ModelManifest, Shard, ShardManifest, ShardPlan
from tasks.retry_errors import retry_errors
from tasks.run_log import log, log_folder
from tasks.run_manifest import run_manifest, write_run_manifest
from tasks.shard_board import ShardBoard
from tasks.shard_store import ShardStore
from tasks.split_dataset import split_dataset
from tasks.storage import Storage, open_storage, write
from tasks.tally import grading_key, regrade
from tasks.validate_output import GateFailed, validate_output
from tasks.write_report import write_report

PLAN = "shards/plan-n{n}.json"
"""How the dataset was cut into shards, for samples of this number a record."""
MOST_SHARDS_AT_ONCE = 2048
"""Shard tasks that wait on the pool at a time: two for each of a thousand engines. A waiting one is a thread that
sleeps; a thousand take 55 MB."""
MOST_NAMES, MOST_REASONS = 8, 3
"""Of what is missing, in the message of a partial run."""


@flow(
    name="generate",
    flow_run_name=run_name,
    description="Turn a model and a dataset into a generated, merged, validated dataset.",
    task_runner=ThreadPoolTaskRunner(max_workers=MOST_SHARDS_AT_ONCE),  # type: ignore[arg-type]
    validate_parameters=True,
)
def generate(
    *,
    model: ModelConfig,
    dataset: DatasetConfig,
    prompt: PromptConfig = PromptConfig(),  # noqa: B008  (frozen)
    sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
    output: OutputConfig,
    validation: ValidationConfig = ValidationConfig(),  # noqa: B008
    engine: EngineConfig = EngineConfig(),  # noqa: B008
) -> Json:
    """Generate a dataset. A rerun with the same output folder does only what is missing.

    Returns the run's manifest. Raises RunError for what a person must mend, GateFailed when a gate is not passed.
    """
    config = GenerateConfig(
        model=model,
        dataset=dataset,
        prompt=prompt,
        sampling=sampling,
        engine=engine,
        output=output,
        validation=validation,
    )
    require_access(config)
    with output_lock(output.path), known_by(model_name(model.source)):
        return _run(config, open_storage(output.path))


def _run(config: GenerateConfig, storage: Storage) -> Json:
    started_at = time.time()
    gpus = _gpus(config)  # too few GPUs show before anything is downloaded
    model = told(download_model)(config.model, config.engine)
    if config.engine.kind == "vllm":
        require_fitting(model.path, config.prompt, config.sampling)
    dataset = _split(config, storage)
    store = ShardStore(storage, results_key(config, model.identity))
    figures = GpuFigures(gpus.groups)
    with _engine_pool(config, model, dataset, store, gpus) as pool:
        shards = _generate_shards(config, dataset, store, pool, figures, _gpu_count(config.engine, gpus))
        output = config.output
        merged = told(merge_shards)(output.path, store.folder, shards, output.format, output.compression)
        try:
            result = told(validate_output)(
                output.path, dataset, shards, merged, store.key, config.sampling.n, config.validation
            )
        except GateFailed as failed:
            result = failed.result  # the task is Failed; the run too, when all is written
        manifest = run_manifest(config, model, dataset, store.key, shards, merged, result, pool, figures, started_at)
    write_run_manifest(storage, manifest)
    told(write_report)(config.output.path, manifest, dataset, shards)
    result.require()
    return manifest


def _split(config: GenerateConfig, storage: Storage) -> DatasetManifest:
    """Shards that an earlier run made are kept, so that a dataset that grows makes only what is new."""
    known, name = None, PLAN.format(n=config.sampling.n)
    with contextlib.suppress(FileNotFoundError, ValidationError):
        known = ShardPlan.model_validate_json(storage.read(name))
    dataset = told(split_dataset)(config.dataset, config.sampling.n, known, needed_columns(config), config.output.path)
    if dataset.plan != known:
        write(storage, name, dataset.plan.model_dump_json().encode())
    log.info("dataset: %d records in %d shards of %d", dataset.records, len(dataset.shards), dataset.plan.last_size)
    if dataset.blank_lines:
        log.info("dataset: %d blank lines were skipped", dataset.blank_lines)
    return dataset


@contextlib.contextmanager
def _engine_pool(
    config: GenerateConfig, model: ModelManifest, dataset: DatasetManifest, store: ShardStore, gpus: Gpus
) -> Iterator[EnginePool]:
    """The pool; its engines start with the first shard that is missing, and are ended whatever happens."""
    spec = EngineSpec(
        number=0,
        config=config,
        model_path=model.path,
        key=store.key,
        dataset_roots=tuple(dataset_roots(config.dataset.path, dataset.files)),
        served_model=model.source if config.engine.kind == "openai" else "",
    )
    pool = EnginePool(_launcher(spec, gpus, model, dataset), config.engine)
    try:
        yield pool
    finally:
        pool.close()


def _gpus(config: GenerateConfig) -> Gpus:
    """The GPUs of this machine that the run may use; none on a cluster, which has its own."""
    if config.engine.pool == "ray":
        require_ray()
        return NoGpus(0)
    return gpus_for(config.engine, config.output.path)


def _gpu_count(engine: EngineConfig, gpus: Gpus) -> int:
    """The GPUs that the run takes of Prefect's limit; on a cluster its `replicas` say."""
    return (engine.replicas or 0) * engine.gpus_per_replica if engine.pool == "ray" else gpus.most


def _launcher(spec: EngineSpec, gpus: Gpus, model: ModelManifest, dataset: DatasetManifest) -> Launcher:
    if spec.config.engine.pool == "ray":
        return RayLauncher(spec, model, dataset.files)
    return LocalLauncher(spec, gpus, log_folder(spec.config.output.path))


def _generate_shards(
    config: GenerateConfig,
    dataset: DatasetManifest,
    store: ShardStore,
    pool: EnginePool,
    figures: GpuFigures,
    gpu_count: int,
) -> list[ShardManifest]:
    n = config.sampling.n
    whole, damages = find_whole(store, dataset.shards, n)
    for damage in damages:
        log.warning("%s; the shard is generated again", damage)
    if config.output.retry_errors and (errors := retry_errors(store, dataset.shards, whole)):
        log.info("output.retry_errors: %d error rows are tried again", errors)
        whole = {index: manifest for index, manifest in whole.items() if not manifest.errors.rows}
    job = Job(store, pool, n, ShardBoard(dataset.shards, whole), whole)
    done = sum(manifest.records * n for manifest in whole.values())
    progress = RunProgress(dataset.records * n, done, n)
    missing = len(dataset.shards) - len(whole)
    with (
        gpu_limit(config.engine.gpu_limit, gpu_count if missing else 0),
        watching(pool.view, progress, job.board, figures, log_folder(config.output.path)),
    ):
        futures = _submit_all(dataset.shards, job)
        wait(futures)
    _require_all(dataset.shards, futures)
    store.drop_chunks(dataset.shards)
    manifests = [manifest for shard in dataset.shards if (manifest := store.manifest(shard, n))]
    return [_graded(config, store, manifest) for manifest in manifests]


def _submit_all(shards: Sequence[Shard], job: Job) -> list[PrefectFuture[Json]]:
    """Prefect's cache skips what is finished; it is not believed where the files are gone or damaged."""
    finished, missing = told(generate_shard), told(generate_shard.with_options(refresh_cache=True))
    return [(finished if shard.index in job.whole else missing).submit(shard, job) for shard in shards]


def _require_all(shards: Sequence[Shard], futures: Sequence[PrefectFuture[Json]]) -> None:
    """Raise RunError saying what is missing, and why, unless all shards are finished."""
    missing = [(s, f) for s, f in zip(shards, futures, strict=True) if not f.state.is_completed()]
    if not missing:
        return
    reasons = Counter(str(future.result(raise_on_failure=False)) for _, future in missing)
    told = "; ".join(f"{reason} ({count} shards)" for reason, count in reasons.most_common(MOST_REASONS))
    named = ", ".join(shard.name for shard, _ in missing[:MOST_NAMES]) + (", …" if len(missing) > MOST_NAMES else "")
    records = sum(shard.records for shard, _ in missing)
    raise RunError(
        f"{len(missing)} of {len(futures)} shards are not finished ({named}; {records} records): {told}. "
        "What is finished is kept; run again or retry to make the rest"
    )


def _graded(config: GenerateConfig, store: ShardStore, manifest: ShardManifest) -> ShardManifest:
    """The shard by today's validation settings; its text is not generated again for that."""
    if manifest.grading == grading_key(config.validation):
        return manifest
    graded = regrade(store.storage, store.folder, manifest, config.validation)
    store.replace_manifest(manifest, graded)
    return graded


if __name__ == "__main__":
    from flows.terminal import run_in_terminal

    sys.exit(run_in_terminal(generate, _CONFIG))
