"""Both downloaders against a real mirror: olah, serving git repositories offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.config import ModelConfig
from tasks.download_model import fetch_model
from tasks.errors import RunError
from tests.downloads.test_hub import content, expected
from tests.hub import tiny_model
from tests.olah import running_olah

MODEL = tiny_model(2_500_000)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_olah(tmp_path_factory.mktemp("olah"), {"org/tiny": MODEL.files}) as endpoint:
        yield endpoint


@pytest.mark.parametrize("downloader", ["hub", "hfd", "auto"])
def test_brings_a_model(mirror: str, cache: Path, downloader: str) -> None:
    config = ModelConfig.model_validate(
        {"source": "org/tiny", "endpoint": mirror, "cache_dir": str(cache), "downloader": downloader}
    )
    manifest = fetch_model(config)
    assert content(manifest.path) == expected(MODEL)
    assert manifest.revision == Path(manifest.path).name
    assert fetch_model(config) == manifest


@pytest.mark.parametrize("downloader", ["hub", "hfd"])
def test_a_missing_model_is_told_in_one_line(mirror: str, cache: Path, downloader: str) -> None:
    config = ModelConfig.model_validate(
        {"source": "org/none", "endpoint": mirror, "cache_dir": str(cache), "downloader": downloader}
    )
    with pytest.raises(RunError, match=r"model.source: there is no folder org/none, and http\S+ has no such model"):
        fetch_model(config)
