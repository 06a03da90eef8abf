"""An engine for faults that a real one cannot be made to show: `python -m tests.fake_engine` in place of the worker.

A record's prompt says what happens: POISON ends the process, HANG never answers, SLOW takes a second, GATE waits until
the file `gate` in the run's output folder is there; TOO LONG is refused until the file `mended` is; anything else is
answered at once, with the prompt itself. More in flight than `engine.extra.memory` is out of memory; more records than
the file `engine.extra.allowance` says wait for a higher figure there.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tasks.engines.base import Ask, Engine, EngineDeadError, EngineSpec, EngineStats, Generated, Prepared
from tasks.engines.worker import main
from tasks.prompts.base import Parsed
from tasks.prompts.conversation import Conversation, text_of
from tasks.records import Json, RecordError


class FakeEngine:
    def __init__(self, spec: EngineSpec) -> None:
        self.max_num_seqs: int = spec.overrides.get("max_num_seqs") or spec.config.engine.max_num_seqs or 32
        threads = os.environ.get("OMP_NUM_THREADS")
        self.facts: Json = {"max_num_seqs": self.max_num_seqs, "max_num_batched_tokens": 2048, "threads": threads}
        self._tokens = 0
        self._gate, self._mended = (Path(spec.config.output.path, name) for name in ("gate", "mended"))
        self._at_once, self._memory = 0, spec.config.engine.extra.get("memory", 1_000_000)
        self._broken = spec.number in spec.config.engine.extra.get("broken", [])
        self._begun, self._allowance = 0, spec.config.engine.extra.get("allowance")
        self._delay = float(spec.config.engine.extra.get("delay", 0.0))

    def prepare(self, conversation: Conversation) -> Prepared:
        text = text_of(conversation.messages[-1]["content"])
        if "TOO LONG" in text and not self._mended.exists():
            raise RecordError("prompt_too_long", f"{conversation.where}: too long")
        return Prepared(text=text, payload=None)

    async def generate(self, request_id: str, prepared: Prepared, ask: Ask) -> list[Generated]:
        if self._broken:
            raise EngineDeadError("CUDA error: no kernel image is available for execution on the device")
        self._at_once += 1
        if self._at_once > self._memory:
            raise EngineDeadError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self._begun += 1
        number = self._begun
        while self._allowance and number > int(Path(self._allowance).read_text() or 0):
            await asyncio.sleep(0.05)
        await asyncio.sleep(self._delay)
        self._at_once -= 1
        if "POISON" in prepared.text:
            os._exit(11)
        if "BROKEN" in prepared.text:
            raise EngineDeadError("CUDA error: an illegal memory access was encountered")
        while "HANG" in prepared.text:
            await asyncio.sleep(3600)
        while "GATE" in prepared.text and not self._gate.exists():
            await asyncio.sleep(0.05)
        if "SLOW" in prepared.text:
            await asyncio.sleep(1.0)
        self._tokens += ask.n
        return [Generated(Parsed(f"{prepared.text} {i}", None, "stop"), 1, 1) for i in range(ask.n)]

    def stats(self) -> EngineStats:
        return EngineStats(tokens=self._tokens)

    async def close(self) -> None:
        return None


async def start(spec: EngineSpec) -> Engine:
    if spec.number in spec.config.engine.extra.get("fail_slots", []):
        raise RuntimeError("CUDA error: device is lost")
    if spec.config.engine.extra.get("fail_start"):
        raise RuntimeError(str(spec.config.engine.extra["fail_start"]))
    return FakeEngine(spec)


if __name__ == "__main__":
    main(start)
