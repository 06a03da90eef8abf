"""A vLLM engine fed continuously. The one module that imports vllm.

Two ways to run the same engine: on GPUs `AsyncLLM`, whose core runs in a process of its own and so hides our work from
the GPU; on a CPU `LLMEngine`, stepped by a thread of ours, which starts eight times sooner and computes as fast.
Outputs are asked for once, when final, and the n samples of a record are one request: its prompt is computed once.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import vllm
from vllm import SamplingParams, TokensPrompt
from vllm.config import StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.model_executor.models import registry
from vllm.multimodal.parse import MultiModalDataParser
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils import torch_utils
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError as VLLMDeadError
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features

from tasks.config import SamplingConfig, StructuredConfig
from tasks.engines.base import Ask, EngineDeadError, EngineSpec, EngineStats, Generated, Prepared
from tasks.engines.multicast import lacks_multicast
from tasks.engines.ray_cluster import known_group
from tasks.engines.vllm_args import engine_args, media_threads, sampling_args, without_fused_all_reduce
from tasks.prompts import make_format
from tasks.prompts.base import Completion, Prompt, PromptFormat
from tasks.prompts.conversation import Conversation
from tasks.records import Json, RecordError

_OFFLINE = UsageContext.LLM_CLASS
"""vLLM's defaults for max_num_seqs and max_num_batched_tokens depend on the use; those of its `LLM` suit throughput."""


class VLLMEngine:
    """One model replica on the GPUs that this process can see, or on its CPU."""

    def __init__(self, core: _Core, prompt_format: PromptFormat, sampling: SamplingConfig) -> None:
        config = core.vllm_config
        self._core = core
        self._format = prompt_format
        self._max_model_len: int = config.model_config.max_model_len
        self._sampling_args = sampling_args(
            sampling, config.model_config.get_diff_sampling_param(), prompt_format.sampling_args
        )
        self._sampling_args["output_kind"] = RequestOutputKind.FINAL_ONLY
        self._structured = sampling.structured
        # With a parser (engine.extra) vLLM lets the model reason first.
        self._all_structured = sampling.structured is not None and not config.structured_outputs_config.reasoning_parser
        self._video_metadata_apart = _drops_video_metadata(config.model_config.hf_config.model_type)
        # A wrong setting shows here, not per record.
        self._params(Ask(n=sampling.n), Prompt(text="", token_ids=[0], length=1))
        self.max_num_seqs: int = config.scheduler_config.max_num_seqs
        self.facts: Json = {
            "vllm": vllm.__version__,
            "device": current_platform.get_device_name() if not current_platform.is_cpu() else "cpu",
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "max_model_len": self._max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "gpu_memory_utilization": config.cache_config.gpu_memory_utilization,
        }

    @classmethod
    async def start(cls, spec: EngineSpec) -> VLLMEngine:
        """Load the model. Raises what vLLM raises for arguments or memory that do not do."""
        config = spec.config
        prompt_format = make_format(
            spec.model_path, config.prompt, list(spec.dataset_roots), config.model.trust_remote_code
        )
        cpu = current_platform.is_cpu()
        args = engine_args(spec, prompt_format.engine_args, cpu)
        args["structured_outputs_config"] = _structured_outputs(args, config.sampling.structured)
        if await asyncio.to_thread(_fuses_in_vain, args, spec):
            print("no NVLink multicast: the all-reduce is not fused", file=sys.stderr)
            args = without_fused_all_reduce(args)
        in_process = cpu and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"
        if prompt_format.takes_media and not in_process:
            args = media_threads() | args
        if in_process:
            _inspect_models_here()
        core: _Core = _InProcessCore(args) if in_process else _AsyncCore(args, spec.placement_group)
        engine = cls(core, prompt_format, config.sampling)
        if prompt_format.takes_media:
            await engine._first_image()
        return engine

    def prepare(self, conversation: Conversation) -> Prepared:
        prompt = self._format.render(conversation)
        if prompt.length >= self._max_model_len:
            message = (
                f"{conversation.where}: the prompt has {prompt.length} tokens, and at most {self._max_model_len - 1} "
                f"leave room for an answer (engine.max_model_len {self._max_model_len})"
            )
            raise RecordError("prompt_too_long", message)
        return Prepared(text=prompt.text, payload=prompt, media_bytes=prompt.media_bytes)

    async def generate(self, request_id: str, prepared: Prepared, ask: Ask) -> list[Generated]:
        prompt: Prompt = prepared.payload
        feed = TokensPrompt(prompt_token_ids=prompt.token_ids)
        if prompt.multi_modal_data:
            feed["multi_modal_data"] = prompt.multi_modal_data
            feed["mm_processor_kwargs"] = self._processor_kwargs(prompt)
        output = await self._core.generate(request_id, feed, self._params(ask, prompt))
        if any(completion.finish_reason in ("error", "abort") for completion in output.outputs):
            raise RecordError("engine_refused", "vLLM gave this request up: see the engine's log")
        return [self._generated(completion, output, prompt) for completion in sorted(output.outputs, key=_by_index)]

    def stats(self) -> EngineStats:
        return self._core.counter.stats

    async def close(self) -> None:
        self._core.close()

    async def _first_image(self) -> None:
        """vLLM loads the model's image processor with the first image's settings, in each of its threads that meets one
        meanwhile: seconds in which the GPU would wait."""
        image = {"type": "image", "image": _plain_image()}
        first = Conversation("prompt", [{"role": "user", "content": [image]}], None, None, "first image")
        try:
            prepared = await asyncio.to_thread(self.prepare, first)
            await self.generate("first-image", prepared, Ask(n=1, max_tokens=1))
        except EngineDeadError:
            raise
        except Exception as error:  # the model may want other images, or the user none (engine.limit_mm_per_prompt)
            print(f"no first image: {type(error).__name__}: {error}", file=sys.stderr)

    def _params(self, ask: Ask, prompt: Prompt) -> SamplingParams:
        args = dict(self._sampling_args)
        room = self._max_model_len - prompt.length
        args["max_tokens"] = min(ask.max_tokens or args.get("max_tokens") or room, room)
        if args.get("min_tokens"):
            args["min_tokens"] = min(args["min_tokens"], args["max_tokens"])
        if self._structured is not None:
            args["structured_outputs"] = _structured(self._structured)
        return SamplingParams(n=ask.n, seed=ask.seed, **args)

    def _processor_kwargs(self, prompt: Prompt) -> Json:
        videos = prompt.multi_modal_data.get("video")
        if not videos or not self._video_metadata_apart:
            return prompt.mm_processor_kwargs
        return prompt.mm_processor_kwargs | {"video_metadata": [metadata for _, metadata in videos]}

    def _generated(self, completion: Any, output: Any, prompt: Prompt) -> Generated:
        token_ids = list(completion.token_ids)
        finish_reason = completion.finish_reason or "stop"
        made = Completion(completion.text, token_ids, finish_reason, structured=self._all_structured)
        parsed = self._format.parse(made, prompt)
        return Generated(
            parsed=parsed,
            prompt_tokens=len(output.prompt_token_ids),
            completion_tokens=len(token_ids),
            cached_tokens=output.num_cached_tokens or 0,
        )


def _fuses_in_vain(args: Json, spec: EngineSpec) -> bool:
    """Whether vLLM would fuse a tensor-parallel all-reduce for GPUs that cannot: nor can those of several machines."""
    if not current_platform.is_cuda() or args.get("tensor_parallel_size", 1) == 1:
        return False
    return bool(spec.placement_group) or lacks_multicast()


def _drops_video_metadata(model_type: str) -> bool:
    """vLLM 0.26 takes a video's metadata and hands it on for newer models only; without it, the processor of a Qwen2-VL
    or Qwen2.5-VL takes the frames for those of 24 a second."""
    if not model_type.startswith("qwen2"):
        return False
    frame = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    items: Any = MultiModalDataParser().parse_mm_data({"video": [(frame, {"fps": 1.0})]})["video"]
    return not items.metadata


def _inspect_models_here() -> None:
    """A model's class that is new to it vLLM looks at in a process of its own, lest CUDA be initialised in this one. It
    imports itself again there, which takes as long as here; where there is no CUDA it can look here."""
    if hasattr(registry, "_run_in_subprocess"):
        registry._run_in_subprocess = lambda look: look()


class _Core(Protocol):
    vllm_config: Any
    counter: _Counter

    async def generate(self, request_id: str, prompt: TokensPrompt, params: SamplingParams) -> Any:
        """The final RequestOutput. Raises RecordError or EngineDeadError."""

    def close(self) -> None: ...


class _Counter(PrometheusStatLogger):  # type: ignore[misc]
    """Keeps the latest figures, and stands in for vLLM's Prometheus logger, which records every token's time."""

    def __init__(self, *_: object, **__: object) -> None:
        self.stats = EngineStats()
        self._idle = 0.0
        self._idle_since: float | None = None

    def record(self, scheduler_stats: Any = None, iteration_stats: Any = None, *_: object, **__: object) -> None:
        """Called once a step."""
        tokens = iteration_stats.num_generation_tokens if iteration_stats else 0
        if scheduler_stats is None:
            return
        now = time.monotonic()
        if self._idle_since is not None:  # the step that ended the pause is counted with it: it is short
            self._idle += now - self._idle_since
        is_idle = not (scheduler_stats.num_running_reqs or scheduler_stats.num_waiting_reqs)
        self._idle_since = now if is_idle else None
        self.stats = EngineStats(
            tokens=self.stats.tokens + tokens,
            running=scheduler_stats.num_running_reqs,
            waiting=scheduler_stats.num_waiting_reqs,
            kv_cache_usage=scheduler_stats.kv_cache_usage,
            idle_seconds=round(self._idle, 3),
        )

    def log_engine_initialized(self) -> None: ...

    @classmethod
    def of(cls, engine: Any) -> _Counter:
        """The counter that vLLM made for an engine."""
        counter: _Counter = next(logger for logger in engine.logger_manager.stat_loggers if isinstance(logger, cls))
        return counter


class _AsyncCore:
    """AsyncLLM: the engine core in a process of its own; its workers in a Ray placement group where one is named."""

    def __init__(self, args: Json, placement_group: str = "") -> None:
        engine_args = AsyncEngineArgs(**{"disable_log_stats": True, **args})
        config = engine_args.create_engine_config(_OFFLINE)
        if placement_group:
            config.parallel_config.placement_group = known_group(placement_group, config.parallel_config.world_size)
        with _few_torch_threads():
            self._engine = AsyncLLM.from_vllm_config(
                config,
                stat_loggers=[_Counter],
                usage_context=_OFFLINE,
                disable_log_stats=engine_args.disable_log_stats,
                enable_log_requests=engine_args.enable_log_requests,
            )
        self.counter = _Counter.of(self._engine)
        self.vllm_config = self._engine.vllm_config

    async def generate(self, request_id: str, prompt: TokensPrompt, params: SamplingParams) -> Any:
        final = None
        try:
            feed: Any = prompt
            if "multi_modal_data" in prompt:
                # In vLLM's threads: `generate` itself would do it on the event loop, and the GPU would wait.
                (feed,) = await self._engine.renderer.render_cmpl_async([prompt])
            async for output in self._engine.generate(feed, params, request_id):
                final = output
        except VLLMDeadError as error:
            raise EngineDeadError(str(error)) from error
        except Exception as error:  # what vLLM finds wrong with a request, by classes that change with its versions
            raise RecordError("engine_refused", str(error)) from error
        return final

    def close(self) -> None:
        self._engine.shutdown()


@contextlib.contextmanager
def _few_torch_threads() -> Iterator[None]:
    """One thread for torch's work on the CPU, here (each media thread has its own) and in a core beside GPUs.

    By default each process has one for every processor, and all of them wait in spin locks after each larger operation,
    at the cost of the thread that feeds the GPU. Newer vLLM sees to its cores itself (vllm-project/vllm#49919); before,
    to none that is the only one of its engine. OMP_NUM_THREADS, if set, stays.
    """
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    if not (current_platform.is_cpu() or hasattr(torch_utils, "set_torch_threads_for_runtime")):
        os.environ["OMP_NUM_THREADS"] = "1"  # for a core that is spawned; one that is forked has torch's setting
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@dataclass(slots=True)
class _Waiting:
    request_id: str
    prompt: TokensPrompt
    params: SamplingParams
    result: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class _InProcessCore:
    """LLMEngine, stepped by a thread. Requests enter between two steps.

    The thread that steps also builds: the cores and the number of threads that OpenMP computes with are a thread's own.
    """

    def __init__(self, args: Json) -> None:
        self._inbox: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._waiting: dict[str, _Waiting] = {}
        built: Future[LLMEngine] = Future()
        self._thread = threading.Thread(target=self._run, args=(args, built), name="vllm-steps", daemon=True)
        self._thread.start()
        self._engine = built.result()
        self.counter = _Counter.of(self._engine)
        self.vllm_config = self._engine.vllm_config

    async def generate(self, request_id: str, prompt: TokensPrompt, params: SamplingParams) -> Any:
        if not self._thread.is_alive():
            raise EngineDeadError("the engine has ended")
        loop = asyncio.get_running_loop()
        request = _Waiting(request_id, prompt, params, loop.create_future(), loop)
        self._inbox.put(request)
        return await request.result

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join(timeout=10)

    def _run(self, args: Json, built: Future[LLMEngine]) -> None:
        try:
            self._engine = LLMEngine.from_engine_args(EngineArgs(**args), _OFFLINE, stat_loggers=[_Counter])
        except BaseException as error:
            built.set_exception(error)
            return
        built.set_result(self._engine)
        try:
            while self._take_in():
                for output in self._engine.step():
                    if output.finished:
                        self._settle(self._waiting.pop(output.request_id), output)
        except BaseException as error:
            dead = EngineDeadError(f"{type(error).__name__}: {error}")
            dead.__cause__ = error
            for request in self._waiting.values():
                self._settle(request, dead)
            raise

    def _take_in(self) -> bool:
        """Add what has arrived; wait for something when the engine has nothing to do. False at the end."""
        while True:
            try:
                request = self._inbox.get(block=not self._engine.has_unfinished_requests())
            except queue.Empty:
                return True
            if request is None:
                return False
            self._add(request)

    def _add(self, request: _Waiting) -> None:
        self._waiting[request.request_id] = request
        try:
            self._engine.add_request(request.request_id, request.prompt, request.params)
        except Exception as error:  # as above: the engine itself is well
            del self._waiting[request.request_id]
            self._settle(request, RecordError("engine_refused", str(error)))

    @staticmethod
    def _settle(request: _Waiting, result: Any) -> None:
        def settle() -> None:
            if request.result.done():
                return
            if isinstance(result, Exception):
                request.result.set_exception(result)
            else:
                request.result.set_result(result)

        request.loop.call_soon_threadsafe(settle)


def _structured_outputs(args: Json, config: StructuredConfig | None) -> StructuredOutputsConfig:
    """The user's own (`engine.extra`), else one that lets JSON hold no white space.

    Small models fill the space between two tokens of JSON with it to the end; vLLM heeds this for an engine only.
    """
    given = args.get("structured_outputs_config") or {}
    if given or config is None or config.json_schema is None:
        return StructuredOutputsConfig(**given)
    backend = "guidance" if has_xgrammar_unsupported_json_features(config.json_schema) else "xgrammar"
    return StructuredOutputsConfig(backend=backend, disable_any_whitespace=True)


def _structured(config: StructuredConfig) -> StructuredOutputsParams:
    if config.json_schema is not None:
        return StructuredOutputsParams(json=config.json_schema)
    if config.regex is not None:
        return StructuredOutputsParams(regex=config.regex)
    return StructuredOutputsParams(choice=config.choice)


def _plain_image() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (224, 224), "white").save(file, "png")
    return file.getvalue()


def _by_index(completion: Any) -> int:
    return int(completion.index)
