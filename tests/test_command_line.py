"""The command line: help, the order of flags, YAML and defaults, and errors that name every wrong field."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.command_line import parse
from tasks.config import GenerateConfig
from tests.conftest import ROOT

YAML = """
model: {source: m}
dataset: {path: d.jsonl}
sampling: {n: 2, temperature: 0.5, stop: ["a"]}
output: {path: out}
"""


NEEDED = ["--model.source", "m", "--dataset.path", "d", "--output.path", "o"]
SCHEMA_A, SCHEMA_B = ({"type": "object", "properties": {name: {"type": "string"}}} for name in "ab")


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
    config = parse([*NEEDED, "--sampling.seed", "3"])
    assert (config.model.source, config.sampling.seed) == ("m", 3)


@pytest.mark.parametrize(
    ("given", "strings"),
    [
        (['["\\n\\n"]'], ["\n\n"]),
        (['["\n"]'], ["\n"]),
        (["\n"], ["\n"]),
        ([" "], [" "]),
        ([" User:"], [" User:"]),
        ([","], [","]),
        (["a,b", "c"], ["a,b", "c"]),
        (["[END]"], ["[END]"]),
        (['"'], ['"']),
        (["\\d"], ["\\d"]),
        (["1"], ["1"]),
        (["a", '["b", "c"]', "null"], ["a", "b", "c", "null"]),
        (["[]"], []),
    ],
)
def test_a_lists_flag_takes_text_as_it_is_or_json(given: list[str], strings: list[str], config_file: str) -> None:
    flags = [part for text in given for part in ("--sampling.stop", text)]
    assert parse(["--config", config_file, *flags]).sampling.stop == strings


@pytest.mark.parametrize("given", [["1", "2"], ["[1, 2]"], ["1,2"], ["1, 2"]])
def test_numbers_of_a_list_may_have_commas_between_them(given: list[str]) -> None:
    flags = [part for text in given for part in ("--sampling.stop_token_ids", text)]
    assert parse([*NEEDED, *flags]).sampling.stop_token_ids == [1, 2]


@pytest.mark.parametrize(
    ("section", "field", "in_yaml", "flag"),
    [
        ("engine", "extra", {"block_size": 16}, {}),
        ("engine", "extra", {"a": {"b": 1}}, {"a": {"c": 2}}),
        ("engine", "limit_mm_per_prompt", {"image": 8}, {"video": 1}),
        ("engine", "ray_resources", {"CPU": 8}, {"cell": 1}),
        ("prompt", "chat_template_kwargs", {"a": 1}, {"b": 1}),
        ("validation", "answer_schema", SCHEMA_A, SCHEMA_B),
        ("validation", "answer_schema", SCHEMA_A, None),
        ("sampling", "structured.json_schema", SCHEMA_A, SCHEMA_B),
    ],
)
def test_a_mappings_flag_replaces_the_yamls(
    section: str, field: str, in_yaml: dict[str, Any], flag: dict[str, Any] | None, tmp_path: Path
) -> None:
    value: Any = in_yaml
    for name in reversed(field.split(".")):
        value = {name: value}
    path = _yaml(tmp_path, **{section: value})
    given: Any = getattr(parse(["--config", path, f"--{section}.{field}", json.dumps(flag)]), section)
    for name in field.split("."):
        given = getattr(given, name)
    assert given == flag


def test_a_flag_for_one_structure_replaces_another_of_the_yaml(tmp_path: Path) -> None:
    path = _yaml(tmp_path, sampling={"n": 3, "structured": {"choice": ["a", "b"]}})
    sampling = parse(["--config", path, "--sampling.structured.regex", "X"]).sampling
    assert sampling.structured is not None
    assert (sampling.n, sampling.structured.regex, sampling.structured.choice) == (3, "X", None)
    assert parse(["--config", path, "--sampling.structured", "null"]).sampling.structured is None


def test_a_section_as_json_sets_the_fields_it_names(config_file: str) -> None:
    given = ["--sampling.temperature", "0.7", "--sampling", '{"n": 4, "temperature": 0.1}']
    sampling = parse(["--config", config_file, *given]).sampling
    assert (sampling.n, sampling.temperature, sampling.stop) == (4, 0.7, ["a"])


def test_names_may_be_parted_by_commas_and_mappings_given_in_pairs() -> None:
    flags = ["--output.keep_fields", "a,b", "--sampling.stop", "a,b", "--sampling.stop_token_ids", "1,2"]
    config = parse([*NEEDED, *flags, "--engine.extra", "seed=1", "--engine.extra", "kv_cache_dtype=fp8"])
    assert (config.output.keep_fields, config.sampling.stop) == (["a", "b"], ["a,b"])
    assert config.sampling.stop_token_ids == [1, 2]
    assert config.engine.extra == {"seed": 1, "kv_cache_dtype": "fp8"}


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--engine.extra", '{"a":'),
        ("--engine.extra", "[1]"),
        ("--engine.extra", '{"a":' * 100_000),
        ("--sampling.structured.json_schema", "schema.json"),
        ("--sampling.stop", '["a", "b"'),
        ("--engine.yarn", "{"),
    ],
)
def test_a_flag_that_is_not_the_json_it_should_be_is_refused_in_a_line(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = _refused([*NEEDED, flag, value], capsys)
    assert line.startswith(f"error: {flag}: must be ")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--sampling.temp", "0.2"], "--sampling.temp: there is no such flag; did you mean --sampling.temperature?"),
        (["--sampling.tpo_p=1"], "--sampling.tpo_p: there is no such flag; did you mean --sampling.top_p?"),
        (["--path", "x"], "--path: there is no such flag; did you mean --dataset.path or --output.path?"),
        (["--nonsense"], "--nonsense: there is no such flag"),
        (["--sampling.stop", "a", "b"], "'b' belongs to no flag: each takes one value, and a list's is repeated"),
        (["--sampling.n"], "--sampling.n: expected one argument (one that begins with - is given as --flag=VALUE)"),
    ],
)
def test_a_wrong_flag_is_refused_in_a_line(given: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _refused([*NEEDED, *given], capsys) == [f"error: {line}"]


def test_a_section_with_nothing_in_it_is_as_if_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _yaml(tmp_path, sampling=None, engine=None)
    assert parse(["--config", path, "--engine.replicas", "2"]) == parse([*NEEDED, "--engine.replicas", "2"])
    assert _refused(["--config", _yaml(tmp_path, dataset=None)], capsys) == ["error: dataset.path: is required"]
    servers = {"kind": "openai", "base_urls": ["http://h/v1"]}
    assert parse(["--config", _yaml(tmp_path, model=None, engine=servers)]).model.source == "auto"


def test_yaml_may_hold_anchors_but_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--config", _yaml(tmp_path, **{"x-common": {"any": 1}})]) == parse(NEEDED)
    assert _refused(["--config", _yaml(tmp_path, config="x.yaml")], capsys) == ["error: config: there is no such field"]


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


def test_the_script_runs_its_own_checkout_and_so_do_the_processes_it_starts(tmp_path: Path) -> None:
    """Another one comes first in the environment, and the folder it is started from is neither."""
    for package in ("flows", "tasks"):
        (tmp_path / "other" / package).mkdir(parents=True)
        (tmp_path / "other" / package / "__init__.py").write_text("raise SystemExit('the other checkout')")
    code = (
        "import runpy, subprocess, sys; sys.argv = ['generate.py', '--help']\n"
        f"try: runpy.run_path({str(ROOT / 'flows/generate.py')!r}, run_name='__main__')\n"
        "except SystemExit as ended: assert not ended.code, ended\n"
        "subprocess.run([sys.executable, '-c', 'import tasks; print(tasks.__file__)'], check=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "other")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(ROOT / "tasks/__init__.py")


def _yaml(folder: Path, **sections: Any) -> str:
    """A config file with what every run needs, and these sections."""
    path = folder / "run.yaml"
    needed = {"model": {"source": "m"}, "dataset": {"path": "d"}, "output": {"path": "o"}}
    path.write_text(yaml.safe_dump(needed | sections))
    return str(path)


def _refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that arguments are refused with."""
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()
