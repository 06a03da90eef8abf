"""Models in the real shapes of Qwen3-8B, Qwen2.5-VL-7B and gpt-oss-20b, without weights (`load_format: dummy`).

Speed depends on shapes, not on what weights say, so no 16 GB have to reach the machine. Tokenizer and processor are
those of tests.models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import models


def qwen3_8b(folder: Path) -> Path:
    """Qwen3-8B's config, with Qwen3's real tokenizer."""
    from transformers import Qwen3Config

    config = Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=False,
        bos_token_id=models.END_OF_TEXT, eos_token_id=models.IM_END, architectures=["Qwen3ForCausalLM"],
        dtype="bfloat16",
    )  # fmt: skip
    _write(config, folder)
    models.copy_tokenizer(folder)
    return folder


def qwen25_vl_7b(folder: Path) -> Path:
    """Qwen2.5-VL-7B's config and processor."""
    from transformers import Qwen2_5_VLConfig

    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "bos_token_id": models.END_OF_TEXT, "eos_token_id": models.IM_END,
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, **models.vision_tokens(), tie_word_embeddings=False,
        architectures=["Qwen2_5_VLForConditionalGeneration"], dtype="bfloat16",
    )  # fmt: skip
    _write(config, folder)
    models.save_qwen2_processor(folder, "Qwen2_5_VLProcessor")
    return folder


def gpt_oss_20b(folder: Path) -> Path:
    """gpt-oss-20b's config, in bfloat16; harmony needs no tokenizer."""
    from transformers import GptOssConfig

    config = GptOssConfig(
        num_hidden_layers=24, num_local_experts=32, num_experts_per_tok=4, vocab_size=201088, hidden_size=2880,
        intermediate_size=2880, head_dim=64, num_attention_heads=64, num_key_value_heads=8, eos_token_id=200002,
        pad_token_id=199999, architectures=["GptOssForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    return _write(config, folder)


MODELS: dict[str, Any] = {"qwen3-8b": qwen3_8b, "qwen2.5-vl-7b": qwen25_vl_7b, "gpt-oss-20b": gpt_oss_20b}


def _write(config: Any, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    assert saved["architectures"] == config.architectures
    return folder
