"""Short names for people: of models, datasets and runs."""

from __future__ import annotations

from pathlib import PurePosixPath

from prefect.runtime import flow_run

MOST_CHARACTERS = 48
_ENDINGS = (".gz", ".zst", ".jsonl", ".parquet", ".csv")
_GENERAL = ("data", "train", "test", "validation")


def run_name() -> str:
    """`Qwen3-8B · train · n4`, from the parameters of the flow run that is starting."""
    parameters = flow_run.get_parameters()
    model, dataset = parameters["model"].source, parameters["dataset"].path
    return f"{model_name(model)} · {dataset_name(dataset)} · n{parameters['sampling'].n}"


def model_name(source: str) -> str:
    """The last part of a hub id, folder or s3:// folder."""
    return _short(_parts(source)[-1])


def dataset_name(path: str) -> str:
    """The file's name without its ending; of a glob or a general name, the folder's too."""
    *folders, name = _parts(path)
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    if folders and "*" in name:
        name = folders[-1]
    elif folders and name in _GENERAL:
        name = f"{folders[-1]}/{name}"
    return _short(name)


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(path.split("://")[-1]).parts if part != "/") or (path,)


def _short(name: str) -> str:
    return name if len(name) <= MOST_CHARACTERS else f"{name[: MOST_CHARACTERS - 1]}…"
