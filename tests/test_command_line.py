"""The command line: help, the order of flags, YAML and defaults, and errors that name every wrong field."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flows.command_line import parse
from tasks.config import GenerateConfig
from tests.conftest import ROOT

YAML = """
model: {source: m}
dataset: {path: d.jsonl}
sampling: {n: 2, temperature: 0.5, stop: ["a"]}
output: {path: out}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    return str(path)


def test_flags_win_over_yaml_and_yaml_over_defaults(config_file: str) -> None:
    config = parse(["--config", config_file, "--sampling.n", "4", "--engine.extra", '{"block_size": 16}'])
    assert (config.sampling.n, config.sampling.temperature, config.sampling.top_p) == (4, 0.5, None)
    assert config.sampling.stop == ["a"]
    assert config.engine.extra == {"block_size": 16}


def test_a_run_needs_no_yaml() -> None:
    config = parse(["--model.source", "m", "--dataset.path", "d", "--output.path", "o", "--sampling.seed", "3"])
    assert (config.model.source, config.sampling.seed) == ("m", 3)


def test_every_wrong_field_is_named(config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(YAML.replace("n: 2", "n: 0").replace("temperature", "temprature") + "prompt: {min_pixels: none}\n")
    with pytest.raises(SystemExit) as ended:
        parse(["--config", str(wrong)])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert any(line.startswith("error: sampling.n:") for line in lines)
    assert any("sampling.temprature" in line and "did you mean temperature" in line for line in lines)
    assert any(line.startswith("error: prompt.min_pixels:") for line in lines)


@pytest.mark.parametrize("content", ["- a list", "model: [", "\x00", "just text"])
def test_a_file_that_is_no_config_is_refused_in_a_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(SystemExit) as ended:
        parse(["--config", str(path)])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_template_that_does_not_compile_is_refused(config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--config", config_file, "--prompt.template", "{{ prompt"])
    assert ended.value.code == 2
    assert "template" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", ["0", "0.000001"])
def test_many_greedy_samples_are_refused(
    temperature: str, config_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--config", config_file, "--sampling.temperature", temperature])
    assert ended.value.code == 2
    assert "sampling: n is 2 with temperature" in capsys.readouterr().err
    assert parse(["--config", config_file, "--sampling.temperature", temperature, "--sampling.n", "1"])


def test_help_lists_every_field_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['generate.py', '--help']; import runpy\n"
        f"try: runpy.run_path({str(ROOT / 'flows/generate.py')!r}, run_name='__main__')\n"
        "except SystemExit: print('HEAVY', sorted({'prefect', 'torch', 'vllm', 'transformers'} & set(sys.modules)))\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in shown
    for section, field in GenerateConfig.model_fields.items():
        for name in field.annotation.model_fields:  # type: ignore[union-attr]
            assert f"--{section}.{name}" in shown
