"""Whether GPUs can write to all of their group at once (NVLink multicast), as `python -m tasks.engines.multicast` says.

vLLM's all-reduce that is fused with the norm after it needs that: without, as in virtual machines and between bridged
cards, vLLM 0.26 hangs or dies while it captures CUDA graphs, and other ways to fuse are slower than not to
(vllm-project/vllm#48075).
"""

from __future__ import annotations

import ctypes
import subprocess
import sys

_SUPPORTED = 132
"""CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED of CUDA's driver API."""
PROBE_SECONDS = 60.0


def lacks_multicast() -> bool:
    """Whether one of the visible GPUs is known to be without.

    Asked in a process of its own: once CUDA is initialised, processes forked from there cannot use it.
    """
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.stdout.split() == ["no"]


def main() -> None:
    """Print yes or no; nothing where there is no driver to ask."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        answers = [_ask(driver, number) for number in range(_count(driver))]
    except OSError as error:
        sys.exit(str(error))
    print("yes" if all(answers) else "no")


def _count(driver: ctypes.CDLL) -> int:
    count = ctypes.c_int()
    _checked(driver.cuInit(0))
    _checked(driver.cuDeviceGetCount(ctypes.byref(count)))
    return count.value


def _ask(driver: ctypes.CDLL, number: int) -> bool:
    device, supported = ctypes.c_int(), ctypes.c_int()
    _checked(driver.cuDeviceGet(ctypes.byref(device), number))
    _checked(driver.cuDeviceGetAttribute(ctypes.byref(supported), _SUPPORTED, device))
    return bool(supported.value)


def _checked(status: int) -> None:
    if status:
        raise OSError(f"CUDA's driver answered with error {status}")


if __name__ == "__main__":
    main()
