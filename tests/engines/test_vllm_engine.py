"""What a vLLM engine does before it is ready, as its core sees it. Real cores are in test_families and test_flow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import models

START = """
import asyncio, json, sys
from types import SimpleNamespace as Some
from tasks.config import GenerateConfig
from tasks.engines import vllm_engine
from tasks.engines.base import EngineSpec

class Core:
    def __init__(self, args):
        model = Some(
            max_model_len=args["max_model_len"],
            dtype="float32",
            get_diff_sampling_param=dict,
            hf_config=Some(model_type="qwen2_5_vl"),
        )
        scheduler = Some(max_num_seqs=8, max_num_batched_tokens=512)
        cache = Some(gpu_memory_utilization=0.9)
        structured = Some(reasoning_parser="")
        self.vllm_config = Some(
            model_config=model, scheduler_config=scheduler, cache_config=cache, structured_outputs_config=structured
        )
        self.asked = []

    async def generate(self, request_id, prompt, params):
        if refusal:
            raise RuntimeError(refusal)
        self.asked.append([len(prompt["multi_modal_data"]["image"]), prompt["mm_processor_kwargs"], params.max_tokens])
        completion = Some(index=0, text="", token_ids=[1], finish_reason="length")
        return Some(outputs=[completion], prompt_token_ids=[1], num_cached_tokens=0)

vllm_engine._InProcessCore = vllm_engine._AsyncCore = Core
model = sys.argv[1]
config = GenerateConfig.model_validate(
    {"model": {"source": model}, "dataset": {"path": "x"}, "output": {"path": "y"}, "engine": {"max_model_len": 1024}}
)
spec = EngineSpec(number=0, config=config, model_path=model, key="key")
for refusal in ("", "not this one"):
    engine = asyncio.run(vllm_engine.VLLMEngine.start(spec))
    print(json.dumps(engine._core.asked))
for model_type in ("qwen2_5_vl", "qwen3_vl"):
    parser = vllm_engine.MultiModalDataParser
    vllm_engine.MultiModalDataParser = lambda: Some(parse_mm_data=lambda data: {"video": Some(metadata=[])})
    print(json.dumps(vllm_engine._drops_video_metadata(model_type)))
    vllm_engine.MultiModalDataParser = parser
video = vllm_engine.Prompt("", [1], 1, {"video": [("frames", {"fps": 2.0})]}, {"do_resize": False})
for engine._video_metadata_apart in (engine._video_metadata_apart, True):
    print(json.dumps(engine._processor_kwargs(video)))
"""

THREADS = """
import os
import torch
from types import SimpleNamespace as Some
from tasks.engines import vllm_engine

new = vllm_engine.torch_utils
for device, vllm, user in [("gpu", new, None), ("gpu", Some(), None), ("cpu", Some(), None), ("gpu", Some(), "4")]:
    os.environ.pop("OMP_NUM_THREADS", None)
    if user:
        os.environ["OMP_NUM_THREADS"] = user
    vllm_engine.current_platform = Some(is_cpu=lambda: device == "cpu")
    vllm_engine.torch_utils = vllm
    torch.set_num_threads(3)
    with vllm_engine._few_torch_threads():
        print(torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"), end=" ")
    print(torch.get_num_threads())
"""

TENSOR_PARALLEL = """
import asyncio, sys
from types import SimpleNamespace as Some
from tasks.config import GenerateConfig
from tasks.engines import vllm_engine
from tasks.engines.base import EngineSpec

class Asked(Exception):
    pass

def core(args, placement_group):
    raise Asked(args.get("compilation_config"))

vllm_engine._AsyncCore = core
vllm_engine.current_platform = Some(is_cpu=lambda: False, is_cuda=lambda: True)
for gpus, lacks, group in [(2, False, ""), (2, True, ""), (2, False, "across nodes"), (1, True, "")]:
    vllm_engine.lacks_multicast = lambda: lacks
    engine = {"tensor_parallel_size": gpus, "max_model_len": 1024}
    sections = {"model": {"source": sys.argv[1]}, "dataset": {"path": "x"}, "output": {"path": "y"}, "engine": engine}
    config = GenerateConfig.model_validate(sections)
    spec = EngineSpec(number=0, config=config, model_path=sys.argv[1], key="key", placement_group=group)
    try:
        asyncio.run(vllm_engine.VLLMEngine.start(spec))
    except Asked as asked:
        print(asked)
"""


@pytest.fixture(scope="module")
def beside_gpus() -> list[str]:
    """What both programs print, in one process: importing vLLM is what takes time."""
    return _run(THREADS + TENSOR_PARALLEL, models.cached(models.tiny_qwen3)).stdout.splitlines()[-8:]


def test_torch_takes_one_thread_beside_gpus(beside_gpus: list[str]) -> None:
    """In the core too where vLLM does not see to that itself; what the user has set stays."""
    assert beside_gpus[:4] == ["3 None 1", "1 1 1", "3 None 1", "3 4 3"]


def test_the_all_reduce_is_fused_where_gpus_have_multicast_alone(beside_gpus: list[str]) -> None:
    """vLLM fuses it on every Hopper GPU, and hangs where they have none."""
    not_fused = "{'pass_config': {'fuse_allreduce_rms': False}}"
    assert beside_gpus[4:] == ["None", not_fused, not_fused, "None"]


def test_a_vision_engine_sees_an_image_before_it_is_ready() -> None:
    """With the settings that records' images have: vLLM loads the image processor once for each of them. One that the
    model refuses is told, and no more."""
    done = _run(START, models.cached(models.tiny_qwen25_vl))
    seen, refused, old, new, as_it_is, apart = (json.loads(line) for line in done.stdout.splitlines()[-6:])
    assert [seen, refused] == [[[1, {"do_resize": False}, 1]], []]
    assert "no first image: RuntimeError: not this one" in done.stderr
    # This vLLM hands a video's metadata on to the processor; an older one has to be given it apart.
    assert as_it_is == {"do_resize": False}
    assert (old, new) == (True, False)
    assert apart == {"do_resize": False, "video_metadata": [{"fps": 2.0}]}


def _run(program: str, model: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run([sys.executable, "-c", program, str(model)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done
