"""The ready run configs load, and hold the sampling settings of their models' cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.run_configs import run_config
from tasks.config import GenerateConfig

DEPLOYMENTS = Path(__file__).parent.parent / "deployments"

SAMPLING: dict[str, dict[str, Any]] = {
    "qwen3-8b": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0},
    "qwen2.5-vl-7b": {"temperature": 0.000001, "repetition_penalty": 1.05},
    "qwen2.5-vl-72b": {"temperature": 0.000001, "repetition_penalty": 1.05},
    "gpt-oss-20b": {"temperature": 1.0, "top_p": 1.0},
}


@pytest.mark.parametrize("name", SAMPLING)
def test_config_loads_with_the_cards_settings(name: str) -> None:
    text = (DEPLOYMENTS / f"{name}.yaml").read_text(encoding="utf-8")
    config = GenerateConfig.model_validate(yaml.safe_load(text))
    sampling = config.sampling.model_dump(exclude_unset=True)
    assert {key: sampling.get(key) for key in SAMPLING[name]} == SAMPLING[name]
    assert config.output.path == f"runs/{name}"
    assert config.engine.max_model_len is not None
    assert config.sampling.max_tokens is not None
    assert config.sampling.max_tokens < config.engine.max_model_len


def test_each_run_config_has_a_deployment() -> None:
    built = [step["flows.run_configs.run_config"]["file"] for step in _build_steps()]
    configs = {f"deployments/{path.name}" for path in DEPLOYMENTS.glob("*.yaml")} - {"deployments/prefect.yaml"}
    assert set(built) == configs


def test_a_deployment_gives_every_section_what_its_run_config_sets() -> None:
    (run,) = yaml.safe_load((DEPLOYMENTS / "prefect.yaml").read_text(encoding="utf-8"))["templates"].values()
    assert set(run["parameters"]) == set(GenerateConfig.model_fields)
    for step in _build_steps():
        file = step["flows.run_configs.run_config"]["file"]
        parameters = run_config(str(DEPLOYMENTS.parent / file))
        values = yaml.safe_load((DEPLOYMENTS.parent / file).read_text(encoding="utf-8"))
        assert {section: fields for section, fields in parameters.items() if fields} == values


def test_a_wrong_run_config_does_not_deploy(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("{model: {source: m}, dataset: {path: d}, output: {path: o}, sampling: {n: 0}}")
    with pytest.raises(ValueError, match=r"run.yaml: sampling.n: .*greater than or equal to 1"):
        run_config(str(path))


def _build_steps() -> list[dict[str, Any]]:
    deployments = yaml.safe_load((DEPLOYMENTS / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    return [step for deployment in deployments for step in deployment["build"]]
