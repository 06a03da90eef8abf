"""What comes from outside is not run, not followed out of its folder, and not shown where it must not be.

Media paths that leave the dataset: tests/prompts/test_media.py. What models wrote, in the report: test_write_report.py.
Templates: test_fuzz_inputs.py. Ports of engines: test_flow_faults.py.
"""

from __future__ import annotations

import importlib
import pickle
import shutil
from pathlib import Path

import orjson
import pytest
from prefect import Task
from prefect.cache_policies import NO_CACHE

from flows.command_line import parse
from tasks.prompts.chat import load_tokenizer

TASKS = ["download_model", "split_dataset", "generate_shard", "merge_shards", "validate_output", "write_report"]
CODE = """
import pathlib
pathlib.Path(__file__).with_name("it-ran").touch()
from transformers import PreTrainedTokenizerFast
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def model_with_code(tiny_qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose tokenizer comes as Python code, which leaves a mark when it runs."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen3, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}, "tokenizer_class": "OwnTokenizer"}
    settings.write_bytes(orjson.dumps(orjson.loads(settings.read_bytes()) | own))
    (folder / "own.py").write_text(CODE)
    return folder


def test_code_that_comes_with_a_model_runs_only_when_asked(model_with_code: Path, tmp_path: Path) -> None:
    try:
        load_tokenizer(str(model_with_code), trust_remote_code=False)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = "the code was passed over"
    assert refusal
    assert not list(tmp_path.rglob("it-ran"))


@pytest.mark.parametrize("name", TASKS)
def test_no_result_is_pickled(name: str) -> None:
    """A pickle in Prefect's storage would be code that runs when it is read."""
    task = getattr(importlib.import_module(f"tasks.{name}"), name)
    assert isinstance(task, Task)
    assert task.result_serializer == "json" or task.cache_policy == NO_CACHE
    assert task.result_serializer == "json" or not task.persist_result


def test_weights_that_are_pickles_cannot_run_code(tmp_path: Path) -> None:
    """vLLM reads *.bin with the same loader and argument."""
    import torch
    from vllm.model_executor.model_loader.weight_utils import pt_weights_iterator

    torch.save({"w": torch.zeros(2)}, tmp_path / "good.bin")
    assert [name for name, _ in pt_weights_iterator([str(tmp_path / "good.bin")], False)] == ["w"]
    mark = tmp_path / "it-ran"
    (tmp_path / "bad.bin").write_bytes(pickle.dumps(_Touch(str(mark)), protocol=2))
    with pytest.raises(pickle.UnpicklingError):
        list(pt_weights_iterator([str(tmp_path / "bad.bin")], False))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--dataset.path", "s3://KEY:SECRETVALUE@bucket/x.jsonl"),
        ("--model.source", "https://user:SECRETVALUE@hub/model"),
        ("--model.endpoint", "https://user:SECRETVALUE@mirror"),
        ("--output.path", "s3://KEY:SECRETVALUE@bucket/out"),
        ("--engine.extra", '{"hf_token": "SECRETVALUE"}'),
        ("--engine.extra", '{"api_key": "SECRETVALUE"}'),
    ],
)
def test_secrets_do_not_get_into_a_config_nor_onto_the_screen(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The config is a Prefect parameter, and stands in the manifest and the report."""
    given = {"--model.source": "m", "--dataset.path": "d", "--output.path": "o"} | {flag: value}
    with pytest.raises(SystemExit) as ended:
        parse([part for pair in given.items() for part in pair])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert flag.removeprefix("--") in told
    assert "SECRETVALUE" not in told


class _Touch:
    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (Path(self._path),)
