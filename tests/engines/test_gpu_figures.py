"""NVML's figures, from a stand-in for a driver that this machine does not have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tasks.engines.gpu_figures import GIB, GpuFigures


class FakeDriver:
    """What pynvml answers, for GPUs 0 and 1; `now` are memory in GiB and utilisation of both."""

    class NVMLError(Exception):
        pass

    now: tuple[int, int] = (0, 0)

    def nvmlInit(self) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetHandleByUUID": lambda uuid: 1,
            "nvmlDeviceGetName": lambda handle: "H100",
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=self.now[0] * GIB, total=80 * GIB),
            "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=self.now[1]),
        }
        return answers[name]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver()
    monkeypatch.setitem(__import__("sys").modules, "pynvml", driver)
    return driver


def test_peak_memory_and_mean_utilisation_while_generating(driver: FakeDriver) -> None:
    figures = GpuFigures([["0"], ["GPU-abc"]])
    for memory, busy, generating in ((20, 0, set()), (70, 90, {0}), (60, 100, {0})):
        driver.now = (memory, busy)
        figures.sample(generating)
    first, second = figures.summary()
    assert (first["peak_memory_gib"], first["mean_utilisation"], first["memory_gib"]) == (70.0, 0.95, 80.0)
    assert (second["gpu"], second["engine"], second["mean_utilisation"]) == ("GPU-abc", 1, None)
    assert [gpu.words() for gpu in figures.of(0)] == [("60.0 of 80 GiB", "100%")]


def test_without_gpus_there_are_no_figures() -> None:
    figures = GpuFigures([[], []])
    figures.sample({0})
    assert figures.summary() == []
    assert figures.of(0) == []


def test_a_driver_that_fails_gives_no_figures(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise driver.NVMLError

    monkeypatch.setattr(driver, "nvmlInit", fail)
    assert GpuFigures([["0"]]).summary() == []
