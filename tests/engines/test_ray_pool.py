"""What only a cluster can do: nodes that come and go, a head that dies, nodes that lack what an engine needs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.config import EngineConfig, GenerateConfig, ModelConfig
from tasks.engines.base import EngineSpec
from tasks.engines.ray_cluster import Node, _connect, known_group, need_of, room
from tasks.engines.vllm_args import engine_args
from tasks.errors import RunError
from tasks.records import ModelManifest
from tests import pools
from tests.flow_runs import wait_until
from tests.pools import FakeRun, all_places
from tests.processes import engines_of
from tests.ray_cluster import TestCluster


@pytest.fixture
def cluster(ray_cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> TestCluster:
    monkeypatch.setattr(pools, "RAY_ADDRESS", ray_cluster.address)
    return ray_cluster


def test_nodes_that_die_and_join_in_the_middle(cluster: TestCluster, tmp_path: Path) -> None:
    """The engine of a node that died goes on elsewhere, a node that joins is used; every row is there, once."""
    prompts = [f"prompt {i}" if i < 60 else f"GATE {i}" for i in range(900)]
    run = FakeRun.make(tmp_path, prompts, replicas=None, engine={"max_num_seqs": 4, "extra": {"delay": 0.05}})
    finished = _in_background(run.run)
    wait_until(lambda: run.view.samples >= 20 and all(e.state == "running" for e in run.view.engines))
    room_before = len(run.view.engines)
    cluster.kill_node(cluster.nodes.pop())
    wait_until(lambda: any("is lost" in step for step in run.view.steps))
    cluster.nodes.append(cluster.add_node(2))
    wait_until(lambda: len(run.view.engines) == room_before + 1)
    wait_until(lambda: all(e.state == "running" and e.shards for e in run.view.engines))
    (tmp_path / "out/gate").touch()
    finished()
    assert run.places() == all_places(900, 1)
    assert not run.rows(errors=True)
    assert all(engine.tokens for engine in run.view.engines)
    assert sum(engine.restarts for engine in run.view.engines) == 1


def test_a_dead_head_fails_the_run_with_one_line_and_a_rerun_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = TestCluster([1, 1])
    script = (
        "from pathlib import Path; from tests import pools;"
        f"pools.RAY_ADDRESS = {cluster.address!r}; pools.RAY_PATIENCE = 6.0;"
        f"prompts = ['prompt'] * 30 + ['GATE'] * 70;"
        f"pools.FakeRun.make(Path({str(tmp_path)!r}), prompts, 2, engine={{'max_num_seqs': 4}}).run()"
    )
    flow = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: bool(list((tmp_path / "out").rglob("chunk-*"))))
        cluster.kill_node(cluster.nodes[0])
        killed = time.monotonic()
        _, stderr = flow.communicate(timeout=120)
    finally:
        flow.kill()
        cluster.close()
    assert time.monotonic() - killed < 55, "Ray itself ended the process, and not the run"
    last = stderr.strip().splitlines()[-1]
    assert f"RunError: the head node of the Ray cluster at {cluster.address} has not answered" in last
    wait_until(lambda: not engines_of(tmp_path / "out"))
    (tmp_path / "out/gate").touch()
    again = FakeRun.make(tmp_path, ["prompt"] * 30 + ["GATE"] * 70)
    manifests = again.run()
    assert again.places() == all_places(100, 1)
    assert sum(manifest.resumed_samples for manifest in manifests) >= 1


def test_a_cluster_is_used_from_outside(
    ray_cluster: TestCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ray's client, as from a flow run's pod that is no node of the cluster."""
    monkeypatch.setattr(pools, "RAY_ADDRESS", ray_cluster.client_address)
    run = FakeRun.make(tmp_path, [f"prompt {i}" if i != 70 else "BROKEN" for i in range(100)], None)
    run.run()
    assert run.places() == all_places(100, 1)
    assert [(row["original_index"], row["error"]) for row in run.rows(errors=True)] == [(70, "engine_crash")]


def test_a_connection_that_ray_breaks_off_is_tried_again(
    ray_cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where its proxy could not fork a server for the client."""
    import ray

    init, made = ray.init, []

    def second_time(**options: Any) -> None:
        made.append(init(**options))
        if len(made) == 1:
            raise ConnectionAbortedError("Starting Ray client server failed")

    monkeypatch.setattr(ray, "init", second_time)
    assert _connect(ray_cluster.client_address) == (ray_cluster.client_address, True)
    assert len(made) == 2
    assert ray.is_initialized()
    ray.shutdown()


def test_an_output_folder_that_a_node_does_not_share_fails_the_run(cluster: TestCluster, tmp_path: Path) -> None:
    run = FakeRun.make(tmp_path, ["prompt"])
    run.pool._launcher._place_probe = lambda: None  # type: ignore[attr-defined]
    run.pool._launcher._probe = ".nodes-elsewhere"  # type: ignore[attr-defined]
    with pytest.raises(RunError, match=r"output.path: .* is not the folder that the run was started in"):
        run.run()


def test_no_cluster_at_the_address_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(RunError, match=r"engine\.ray_address: no Ray cluster to be had at '127\.0\.0\.1:1'"):
        FakeRun.make(tmp_path, ["prompt"]).run()


def test_what_no_node_has_fails_the_run(cluster: TestCluster, tmp_path: Path) -> None:
    run = FakeRun.make(tmp_path, ["prompt"], None, engine={"ray_resources": {"engine": 3}})
    with pytest.raises(RunError, match=r"no node of the Ray cluster at .* has \{'engine': 3.0\}"):
        run.run()


GPU_NODES = [Node("a", "10.0.0.1", {"GPU": 8, "CPU": 64}), Node("b", "10.0.0.2", {"GPU": 4, "CPU": 32})]
CPU_NODES = [Node("a", "10.0.0.1", {"CPU": 8, "disk": 1}), Node("b", "10.0.0.2", {"CPU": 16})]
NO_NODES_YET = [Node("head", "10.0.0.1", {"memory": 1 << 30})]


@pytest.mark.parametrize(
    ("fields", "nodes", "bundles", "engines"),
    [
        ({}, GPU_NODES, [{"GPU": 1}], 12),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, GPU_NODES, [{"GPU": 4}], 3),
        ({"tensor_parallel_size": 8}, GPU_NODES, [{"GPU": 8}], 1),
        ({"ray_resources": {"CPU": 32}}, GPU_NODES, [{"GPU": 1, "CPU": 32}], 3),
        ({"tensor_parallel_size": 12}, GPU_NODES, [{"GPU": 1}] * 12, 1),
        ({"tensor_parallel_size": 16}, GPU_NODES, [{"GPU": 1}] * 16, 0),
        ({}, CPU_NODES, [{"CPU": 8}], 3),
        ({"ray_resources": {"disk": 1}}, CPU_NODES, [{"disk": 1}], 1),
        ({"replicas": 2}, CPU_NODES, [{"CPU": 8}], 3),
        ({"replicas": 2, "tensor_parallel_size": 2}, NO_NODES_YET, [{"GPU": 2}], 0),
    ],
)
def test_what_an_engine_takes_of_the_cluster(
    fields: dict[str, Any], nodes: list[Node], bundles: list[dict[str, float]], engines: int
) -> None:
    need = need_of(EngineConfig(**fields), nodes)
    assert list(need.bundles) == bundles
    assert need.across == (len(bundles) > 1)
    assert room(need, nodes) == engines


def test_how_many_engines_must_be_said_where_no_node_tells() -> None:
    with pytest.raises(RunError, match=r"engine\.replicas: .* neither GPUs nor CPUs now"):
        need_of(EngineConfig(), NO_NODES_YET)


def test_a_replica_across_nodes_runs_in_its_placement_group() -> None:
    config = {"model": {"source": "m"}, "dataset": {"path": "d"}, "output": {"path": "o"}}
    spec = EngineSpec(number=0, config=GenerateConfig.model_validate(config), model_path="m", key="k")
    assert "distributed_executor_backend" not in engine_args(spec, {}, cpu=False)
    across = spec.model_copy(update={"placement_group": "0123456789abcdef" * 2 + "0123"})
    assert engine_args(across, {}, cpu=False)["distributed_executor_backend"] == "ray"
    group = known_group(across.placement_group, 2)
    assert group.id.hex() == across.placement_group
    assert group.bundle_specs == [{"GPU": 1.0}, {"GPU": 1.0}]


def test_a_node_with_another_model_or_without_the_dataset_is_refused(tmp_path: Path, tiny_qwen3: Path) -> None:
    from tasks.downloads.fetch import fetch_model
    from tasks.engines.ray_actor import Checks, EngineActor

    config = GenerateConfig.model_validate(
        {"model": {"source": str(tiny_qwen3)}, "dataset": {"path": "d"}, "output": {"path": str(tmp_path)}}
    )
    (tmp_path / "probe").touch()
    model = fetch_model(config.model)
    assert EngineActor().prepare(config, Checks("probe", (), model, False)) == str(tiny_qwen3)
    other = model.model_copy(update={"identity": "other"})
    with pytest.raises(RunError, match="is another model on node"):
        EngineActor().prepare(config, Checks("probe", (), other, False))
    with pytest.raises(RunError, match=r"dataset.path: /data/x.jsonl is not there on node"):
        EngineActor().prepare(config, Checks("probe", ("/data/x.jsonl",), model, False))


def test_a_node_fetches_the_commit_that_the_run_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By now the branch may be another one."""
    from tasks.engines import ray_actor

    config = GenerateConfig.model_validate(
        {"model": {"source": "org/m"}, "dataset": {"path": "d"}, "output": {"path": str(tmp_path)}}
    )
    (tmp_path / "probe").touch()
    asked: list[str | None] = []

    def fetch(model: ModelConfig, dummy_weights: bool) -> ModelManifest:
        asked.append(model.revision)
        return ModelManifest(source=model.source, path="here", identity="i", revision=model.revision)

    monkeypatch.setattr(ray_actor, "fetch_model", fetch)
    began = ModelManifest(source="org/m", path="there", identity="i", revision="abc")
    assert ray_actor.EngineActor().prepare(config, ray_actor.Checks("probe", (), began, False)) == "here"
    assert asked == ["abc"]


def _in_background(work: Callable[[], object]) -> Callable[[], None]:
    """Start the work; returns what waits for its end, and raises its error."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def wait() -> None:
        thread.join()
        if errors:
            raise errors[0]

    return wait
