"""Datasets of the hub, by hf://datasets/…, through huggingface_hub's own filesystem."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from tasks.config import GenerateConfig
from tasks.dataset import list_inputs
from tasks.engines.worker_process import base_environment
from tasks.errors import RunError
from tests.inputs.dataset_hub import DATASET, running_dataset_hub
from tests.inputs.tables import SUFFIXES, fields_of, split_path, texts, write_table

PATH = f"hf://datasets/{DATASET}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The dataset's files, on the hub as soon as they are written."""
    with running_dataset_hub(tmp_path) as endpoint:
        # HF_ENDPOINT is read at import.
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield tmp_path
    huggingface_hub.HfFileSystem.clear_instance_cache()


def test_every_format_as_file_glob_and_folder(folder: Path) -> None:
    (folder / "data").mkdir()
    for suffix in SUFFIXES:
        write_table(folder / f"data/train{suffix}", texts(100), 40)
    (folder / "README.md").write_text("---\n")
    names = sorted(f"{PATH}/data/train{suffix}" for suffix in SUFFIXES)
    assert list_inputs(PATH) == list_inputs(f"{PATH}/data") == names
    assert list_inputs(f"{PATH}/data/*.jsonl.*") == [name for name in names if ".jsonl." in name]
    for suffix in SUFFIXES:
        remote, local = split_path(f"{PATH}/data/train{suffix}", 30), split_path(folder / f"data/train{suffix}", 30)
        assert fields_of(remote) == texts(100)
        assert (remote.sha256, remote.records) == (local.sha256, 100)


def test_a_dataset_that_is_not_there_or_gated_is_refused(folder: Path) -> None:
    for path in ("hf://datasets/org/none", "hf://datasets/org/gated/a.csv", f"{PATH}/none.csv", f"{PATH}/*.csv"):
        with pytest.raises(RunError, match=r"dataset\.path: hf://.*: no such file or folder, or HF_TOKEN lacks access"):
            list_inputs(path)


READ = """
import sys
from tasks.config import DatasetConfig
from tasks.dataset import read_shard
from tasks.split_dataset import split
(shard,) = split(DatasetConfig(path=sys.argv[1]), n=1).shards
print(*(record.fields["id"] for record in read_shard(shard)))
"""


def test_a_worker_may_read_the_dataset_though_models_are_not_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", huggingface_hub.constants.ENDPOINT)
    write_table(folder / "data.csv", texts(3))
    local, hub = (config_of(path) for path in ("data.csv", f"{PATH}/data.csv"))
    assert base_environment(local)["HF_HUB_OFFLINE"] == "1"
    command = [sys.executable, "-c", READ, hub.dataset.path]
    read = subprocess.run(command, env=base_environment(hub), capture_output=True, text=True, check=False)
    assert read.stdout == "r0 r1 r2\n", read.stderr


def config_of(path: str) -> GenerateConfig:
    sections = {"model": {"source": "a/b"}, "dataset": {"path": path}, "output": {"path": "out"}}
    return GenerateConfig.model_validate(sections)
