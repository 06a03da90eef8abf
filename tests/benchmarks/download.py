"""Downloads from a hub on loopback: as fast as they go, then killed again and again, then with a damaged byte.

A row for each: seconds, megabytes the hub sent, and whether the sha256 is right; notes tell what was kept at each kill.
The hub is Python on the same cores: the speeds are a lower bound, and say more of it than of the downloaders.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from pathlib import Path

from tasks.config import ModelConfig
from tests.benchmarks.harness import Result
from tests.downloads.running import start, wait_until
from tests.hub import Hub, Model, running_hub, tiny_model

WEIGHTS = "model.safetensors"
DELAY = 0.02
"""Seconds after each 64 KiB on a connection: 16 connections make about 50 MB/s, so that there is time for kills."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--kills", type=int, default=5)


def measure(options: argparse.Namespace) -> Result:
    weights = os.urandom(options.megabytes * 1_000_000)
    result = Result([])
    with tempfile.TemporaryDirectory() as folder, running_hub() as hub:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/user-cache"
        small = {name: data for name, data in tiny_model().files.items() if name in ("config.json", "tokenizer.json")}
        hub.models["org/large"] = Model({**small, WEIGHTS: weights})
        for downloader in ("hub", "hfd"):
            undisturbed(result, hub, config(hub, Path(folder, downloader), downloader))
        killed(result, hub, config(hub, Path(folder, "killed"), "hfd"), options.kills)
        damaged(result, hub, config(hub, Path(folder, "killed"), "hfd"))
    return result


def config(hub: Hub, cache: Path, downloader: str) -> ModelConfig:
    """A config for the large model."""
    return ModelConfig.model_validate(
        {"source": "org/large", "endpoint": hub.endpoint, "cache_dir": str(cache), "downloader": downloader}
    )


def undisturbed(result: Result, hub: Hub, model: ModelConfig) -> None:
    """One download, start of the process and verification included; then the same again."""
    for what in ("download", "again, present"):
        hub.sent.clear()
        report(result, hub, model, f"{model.downloader}: {what}", *run(model))


def killed(result: Result, hub: Hub, model: ModelConfig, kills: int) -> None:
    """Kill the download with SIGKILL whenever another share of the file has come."""
    hub.sent.clear()
    hub.delay = DELAY
    size = len(hub.models["org/large"].files[WEIGHTS])
    began = time.monotonic()
    for kill in range(kills):
        process = start(model)
        wait_until(lambda share=(kill + 1) / (kills + 1): on_disk(model) > share * size, process, 300)
        process.kill()
        process.communicate()
        result.notes.append(f"kill {kill + 1}: {on_disk(model) / 1e6:.0f} MB on disk, {connections(hub)} connections")
        hub.requests.clear()
    _, path = run(model)
    hub.delay = 0
    report(result, hub, model, f"{model.downloader}: killed {kills} times", time.monotonic() - began, path)


def damaged(result: Result, hub: Hub, model: ModelConfig) -> None:
    """Flip a byte of the finished model: only that file is fetched again."""
    _, path = run(model)
    with Path(path, WEIGHTS).open("r+b") as file:
        file.seek(len(hub.models["org/large"].files[WEIGHTS]) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    hub.sent.clear()
    hub.delay = DELAY
    report(result, hub, model, f"{model.downloader}: a byte flipped on the disk", *run(model))
    result.notes.append(f"files sent again: {sorted(name for name, sent in hub.sent.items() if sent)}")


def run(model: ModelConfig) -> tuple[float, str]:
    """Download in a process of its own; seconds, and the model's path."""
    began = time.monotonic()
    process = start(model)
    path, log = process.communicate()
    assert process.returncode == 0, log
    return time.monotonic() - began, path.strip()


def report(result: Result, hub: Hub, model: ModelConfig, what: str, seconds: float, path: str) -> None:
    """One row."""
    with Path(path, WEIGHTS).open("rb") as file:
        right = hashlib.file_digest(file, "sha256").hexdigest() == hub.models["org/large"].oids[WEIGHTS]
    sent = round(sum(hub.sent.values()) / 1e6, 1)
    verdict = "right" if right else "WRONG"
    result.rows.append({"download": what, "seconds": round(seconds, 2), "MB sent": sent, "sha256": verdict})


def on_disk(model: ModelConfig) -> int:
    """Bytes of the model that are on the disk, whole or under way."""
    assert model.cache_dir is not None
    blobs = Path(model.cache_dir, "models--org--large", "blobs")
    return sum(path.stat().st_blocks * 512 for path in blobs.glob("*") if path.suffix != ".aria2")


def connections(hub: Hub) -> int:
    """Connections that fetched a range of the weights since the last look."""
    return sum(r.path.startswith("/cdn/") and r.path.endswith(WEIGHTS) for r in hub.requests)
