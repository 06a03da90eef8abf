"""NVLink multicast: asked of CUDA's driver (here a small library in its place), and what follows for vLLM."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tasks.engines.multicast import lacks_multicast
from tasks.engines.vllm_args import without_fused_all_reduce

DRIVER = """
static const int has_multicast[] = {ANSWERS};
int cuInit(unsigned flags) { return STATUS; }
int cuDeviceGetCount(int *count) { *count = sizeof has_multicast / sizeof *has_multicast; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 132 ? has_multicast[device] : 1;
    return 0;
}
"""


@pytest.mark.parametrize(("answers", "status", "lacks"), [("1, 1", 0, False), ("1, 0", 0, True), ("0", 100, False)])
def test_the_driver_is_asked_of_each_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str, status: int, lacks: bool
) -> None:
    """A driver that answers with an error is no reason to change anything."""
    source = tmp_path / "driver.c"
    source.write_text(DRIVER.replace("ANSWERS", answers).replace("STATUS", str(status)))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", source], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert lacks_multicast() is lacks


def test_without_a_driver_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libcuda.so.1").touch()  # found before one that this machine may have
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert not lacks_multicast()


def test_the_all_reduce_is_not_fused_unless_the_user_says_so() -> None:
    args = {"model": "m", "compilation_config": {"level": 3, "pass_config": {"fuse_norm_quant": True}}}
    passes = {"fuse_allreduce_rms": False, "fuse_norm_quant": True}
    assert without_fused_all_reduce(args) == {"model": "m", "compilation_config": {"level": 3, "pass_config": passes}}
    asked = {"compilation_config": {"pass_config": {"fuse_allreduce_rms": True}}}
    assert without_fused_all_reduce(asked) == asked
