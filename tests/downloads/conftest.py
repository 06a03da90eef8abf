"""A hub, a cache and an environment of their own for each test of the downloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.config import ModelConfig
from tests.hub import Hub, running_hub, tiny_model
from tests.seaweed import seaweed  # noqa: F401  a fixture

MODEL = "org/tiny"


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, mirror or cache of this machine's user."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_STORED_TOKENS_PATH", str(tmp_path / "no-tokens"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with the model `org/tiny`."""
    with running_hub() as server:
        server.models[MODEL] = tiny_model()
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def config(hub: Hub, cache: Path) -> Callable[..., ModelConfig]:
    """A config for the hub's model; keywords override."""

    def make(**fields: object) -> ModelConfig:
        defaults = {"source": MODEL, "endpoint": hub.endpoint, "cache_dir": str(cache), "downloader": "hub"}
        return ModelConfig.model_validate(defaults | fields)

    return make
