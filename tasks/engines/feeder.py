"""Feeds an engine: keeps a window of requests in flight, across the borders of chunks and shards.

Records are read and prepared in threads ahead of the engine, bounded in number and in bytes. The next shard's first
requests enter while the last ones of this shard drain, so the engine is never short of work while there is any.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tasks.answers import extract_answer
from tasks.config import GenerateConfig
from tasks.engines.base import Ask, Engine, EngineDeadError, Generated, Prepared
from tasks.engines.lengths import longest_first, own_max_tokens
from tasks.engines.media_room import MediaRoom
from tasks.engines.shard_work import Owed, ShardWork
from tasks.prompts.conversation import Conversation, read_conversation
from tasks.records import BadRecord, ErrorRow, Json, RecordError, Sample, Shard, ShardManifest
from tasks.shard_store import Row, ShardStore

READ_BATCH = 32
KNOWN_LENGTHS_BATCH = 1024
"""Records read at once where each tells its own max_tokens: the longest go first, so that none is left for the end."""
PREPARE_AHEAD = 32
"""Records prepared and not yet in flight."""
WRITE_TRIES = 3
"""Times that a chunk or a shard is tried to be written before the shard fails; its rows are kept meanwhile. A store
that does not answer (ConnectionError) is waited for without end: what was made is paid for, and it will be back."""
WRITE_DELAY = 2.0

Emit = Callable[[Json], None]


@dataclass(frozen=True, slots=True)
class _Ready:
    work: ShardWork
    owed: Owed
    conversation: Conversation
    prepared: Prepared
    max_tokens: int | None


class Feeder:
    """Takes shards, gives rows to their files, and tells what happens by `emit`.

    Events: `want` (give me a shard), `begin` and `end` of a record, `rows` made, `shard_done` with its manifest,
    `shard_failed`, `trouble` (a write that is tried again). `run` ends with EngineDeadError when the engine dies; what
    was made is in the chunks by then.
    """

    def __init__(self, engine: Engine, name: str, config: GenerateConfig, store: ShardStore, emit: Emit) -> None:
        self._engine = engine
        self._name = name
        self._config = config
        self._store = store
        self._emit = emit
        self._n = config.sampling.n
        # Twice what the engine takes at once: when many sequences end in one step, their successors wait at the door.
        self._window = max(2 * engine.max_num_seqs, self._n)
        self._shards: asyncio.Queue[Shard] = asyncio.Queue()
        self._ready: asyncio.Queue[tuple[ShardWork, Owed, asyncio.Future[_Ready]]] = asyncio.Queue(PREPARE_AHEAD)
        self._preparers = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2)), "prepare")
        self._open: set[ShardWork] = set()
        self._finishing: set[ShardWork] = set()
        self._in_flight = 0
        self._records_in_flight: set[int] = set()
        self._media = MediaRoom()
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dead: asyncio.Future[None] | None = None
        self._ending = False
        self._suspects: set[int] = set()
        self._records_at_once: int | None = None
        self._poison: dict[int, str] = {}
        self._request_numbers = itertools.count()
        self._prepared = 0

    def add(self, shard: Shard) -> None:
        """Queue a shard."""
        self._shards.put_nowait(shard)

    def hunt(self, suspects: Iterable[int], records_at_once: int, poison: dict[int, str]) -> None:
        """After a crash: at most so many records in flight until all suspects are through; poison is not fed at all.

        `poison` maps an original_index to the kind of its error row (`engine_crash` or `engine_stall`).
        """
        self._suspects = set(suspects) - set(poison)
        self._records_at_once = records_at_once if self._suspects else None
        self._poison = poison

    @property
    def in_flight(self) -> int:
        """Sequences in flight."""
        return self._in_flight

    @property
    def progress(self) -> int:
        """Changes while records are read or prepared: the proof of life where no token can be made yet."""
        return self._prepared + sum(work.lines_read for work in self._open)

    async def run(self) -> None:
        """Feed until cancelled, or until the engine dies (EngineDeadError)."""
        self._dead = asyncio.get_running_loop().create_future()
        loops = [asyncio.create_task(loop()) for loop in (self._read, self._submit, self._keep_checkpoints)]
        try:
            done, _ = await asyncio.wait([*loops, self._dead], return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
        finally:
            self._ending = True
            for task in (*loops, *self._tasks):
                task.cancel()
            await asyncio.gather(*loops, *self._tasks, return_exceptions=True)
            self._preparers.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(self.checkpoint_all)

    def checkpoint_all(self) -> None:
        """Write what is made and in no chunk yet; waits for writes that are under way."""
        for work in [*self._open, *self._finishing]:
            with contextlib.suppress(Exception):
                work.checkpoint()

    async def _read(self) -> None:
        while True:
            if self._shards.empty():
                self._emit({"event": "want"})
            work = ShardWork(await self._shards.get(), self._config, self._store, self._name)
            self._open.add(work)
            try:
                if manifest := await asyncio.to_thread(work.open):
                    self._done(work, manifest)
                    continue
                while batch := await asyncio.to_thread(self._next_batch, work):
                    for owed in batch:
                        await self._queue(work, owed)
                    if work.failed:
                        break
            except Exception as error:
                self._fail(work, error)
            else:
                await self._finish_if_complete(work)

    def _next_batch(self, work: ShardWork) -> list[Owed]:
        name = self._config.sampling.max_tokens_field
        return longest_first(work.next_owed(KNOWN_LENGTHS_BATCH), name) if name else work.next_owed(READ_BATCH)

    async def _queue(self, work: ShardWork, owed: Owed) -> None:
        taken = await self._media.take()

        def prepared(future: asyncio.Future[_Ready]) -> None:
            # One that waits when the engine dies is nobody's any more: its error is looked at here.
            failed = future.cancelled() or future.exception() is not None
            self._media.settle(taken, 0 if failed else future.result().prepared.media_bytes)

        future = asyncio.get_running_loop().run_in_executor(self._preparers, self._prepare, work, owed)
        future.add_done_callback(prepared)
        await self._ready.put((work, owed, future))

    def _prepare(self, work: ShardWork, owed: Owed) -> _Ready:
        record = owed.record
        self._prepared += 1
        if isinstance(record, BadRecord):
            raise record.error
        if (kind := self._poison.get(record.original_index)) is not None:
            raise RecordError(kind, f"{record.where}: the engine died each time this record was generated")
        conversation = read_conversation(record, self._config.dataset, self._config.prompt)
        max_tokens = own_max_tokens(record.fields, self._config.sampling.max_tokens_field, record.where)
        prepared = self._engine.prepare(conversation)
        return _Ready(work, owed, conversation, prepared, max_tokens)

    async def _submit(self) -> None:
        while True:
            work, owed, future = await self._ready.get()
            try:
                ready = await future
            except RecordError as error:
                await self._refuse(work, owed, error)
                continue
            except Exception as error:
                await self._refuse(work, owed, _internal(owed, error))
                continue
            await self._wait_for_room(len(owed.sample_ids))
            if work.failed:
                self._media.give_back(ready.prepared.media_bytes)
                continue
            index = owed.record.original_index
            self._in_flight += len(owed.sample_ids)
            self._records_in_flight.add(index)
            self._emit({"event": "begin", "record": index})
            task = asyncio.create_task(self._complete(ready))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _wait_for_room(self, samples: int) -> None:
        def room() -> bool:
            if self._records_at_once is not None and len(self._records_in_flight) >= self._records_at_once:
                return False
            return self._in_flight == 0 or self._in_flight + samples <= self._window

        async with self._changed:
            await self._changed.wait_for(room)

    async def _complete(self, ready: _Ready) -> None:
        work, owed, index = ready.work, ready.owed, ready.owed.record.original_index
        began = time.time()
        try:
            generated = await self._generate(ready)
            rows = [self._sample_row(ready, s, g, began) for s, g in zip(owed.sample_ids, generated, strict=True)]
        except RecordError as error:
            rows = self._error_rows(owed, error)
        except EngineDeadError as error:
            assert self._dead is not None
            if not self._dead.done():
                self._dead.set_exception(error)
            return
        except Exception as error:
            rows = self._error_rows(owed, _internal(owed, error))
        if self._ending:
            return  # what breaks while all is cancelled says nothing of the record: it is owed again
        self._emit({"event": "end", "record": index})
        async with self._changed:
            self._in_flight -= len(owed.sample_ids)
            self._records_in_flight.discard(index)
            self._media.give_back(ready.prepared.media_bytes)
            self._clear([index])
            self._changed.notify_all()
        await self._store_rows(work, rows)

    async def _generate(self, ready: _Ready) -> list[Generated]:
        """All samples as one request; of a record that was resumed half-way, one request a missing sample."""
        index, ids = ready.owed.record.original_index, ready.owed.sample_ids
        name = f"{index}-{next(self._request_numbers)}"  # a shard that failed may be back while its last are in flight
        seed = record_seed(self._config.sampling.seed, index)
        if len(ids) == self._n:
            ask = Ask(n=self._n, seed=seed, max_tokens=ready.max_tokens)
            return await self._engine.generate(name, ready.prepared, ask)
        asks = {s: Ask(n=1, seed=None if seed is None else seed + s, max_tokens=ready.max_tokens) for s in ids}
        samples = await asyncio.gather(
            *(self._engine.generate(f"{name}.{s}", ready.prepared, ask) for s, ask in asks.items())
        )
        return [sample for group in samples for sample in group]

    async def _refuse(self, work: ShardWork, owed: Owed, error: RecordError) -> None:
        self._emit({"event": "end", "record": owed.record.original_index})
        async with self._changed:
            self._clear([owed.record.original_index])
            self._changed.notify_all()
        await self._store_rows(work, self._error_rows(owed, error))

    def _clear(self, records: Iterable[int]) -> None:
        """These are through; with the last suspect of a hunt, all that fits may be in flight again."""
        self._suspects.difference_update(records)
        if not self._suspects:
            self._records_at_once = None

    async def _store_rows(self, work: ShardWork, rows: list[Row]) -> None:
        if work.failed or self._ending:
            return
        for row in rows:
            work.add(row)
        errors = sum(row.is_error for row in rows)
        self._emit({"event": "rows", "shard": work.shard.index, "samples": len(rows) - errors, "errors": errors})
        await self._finish_if_complete(work)

    async def _finish_if_complete(self, work: ShardWork) -> None:
        if not work.complete or work not in self._open:
            return
        self._open.discard(work)
        self._finishing.add(work)
        left = WRITE_TRIES
        while True:
            try:
                manifest = await asyncio.to_thread(work.finish)
            except Exception as error:
                left -= not isinstance(error, ConnectionError)
                if not left:
                    self._fail(work, error)
                    return
                self._trouble(work, error)
                await asyncio.sleep(WRITE_DELAY)
            else:
                break
        self._done(work, manifest)

    def _done(self, work: ShardWork, manifest: ShardManifest) -> None:
        self._open.discard(work)
        self._finishing.discard(work)
        self._clear(work.records)
        self._emit({"event": "shard_done", "shard": work.shard.index, "manifest": manifest.model_dump(mode="json")})

    async def _keep_checkpoints(self) -> None:
        every = self._config.output.chunk_seconds
        while True:
            await asyncio.sleep(min(every, 1.0))
            for work in list(self._open):
                if work.dirty and time.monotonic() - work.last_checkpoint >= every:
                    await self._checkpoint(work)

    async def _checkpoint(self, work: ShardWork) -> None:
        try:
            await asyncio.to_thread(work.checkpoint)
        except Exception as error:
            work.write_failures += not isinstance(error, ConnectionError)
            if work.write_failures >= WRITE_TRIES:
                self._fail(work, error)
            else:
                self._trouble(work, error)
        else:
            work.write_failures = 0

    def _trouble(self, work: ShardWork, error: Exception) -> None:
        """A disk that is full or a store that does not answer may be mended; the rows wait."""
        self._emit({"event": "trouble", "message": f"shard {work.shard.name} cannot be written, trying again: {error}"})

    def _fail(self, work: ShardWork, error: Exception) -> None:
        """The shard goes back; what its chunks hold stays."""
        if work.failed:
            return
        work.failed = True
        self._open.discard(work)
        self._finishing.discard(work)
        self._clear(work.records)
        event = {"event": "shard_failed", "shard": work.shard.index, "kind": type(error).__name__}
        self._emit({**event, "message": str(error) or repr(error)})

    def _error_rows(self, owed: Owed, error: RecordError) -> list[Row]:
        record, where = owed.record, f"{owed.record.where}: "
        message = where + error.message.removeprefix(where)  # an engine may not know it
        return [
            Row(record.digest, ErrorRow(record.original_index, s, error.kind, message).row()) for s in owed.sample_ids
        ]

    def _sample_row(self, ready: _Ready, sample_id: int, generated: Generated, began: float) -> Row:
        record, conversation, parsed = ready.owed.record, ready.conversation, generated.parsed
        keep = {name: _as_json(conversation.fields.get(name)) for name in self._config.output.keep_fields}
        sample = Sample(
            original_index=record.original_index,
            sample_id=sample_id,
            id=_as_json(conversation.id),
            prompt=ready.prepared.text,
            label=_as_json(conversation.label),
            predict=parsed.predict,
            reasoning=parsed.reasoning,
            answer=extract_answer(parsed.predict, self._config.validation, parsed.finish_reason),
            finish_reason=parsed.finish_reason,
            prompt_tokens=generated.prompt_tokens,
            completion_tokens=generated.completion_tokens,
            extra={**parsed.extra, **keep},
        )
        return Row(record.digest, sample.row(), generated.cached_tokens, began, time.time())


def _internal(owed: Owed, error: Exception) -> RecordError:
    return RecordError("internal_error", f"{owed.record.where}: {type(error).__name__}: {error}")


def _as_json(value: Any) -> Any:
    """Bytes, which Parquet may hold, as base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list) else value


def record_seed(seed: int | None, original_index: int) -> int | None:
    """The seed of a record's first sample; sample k has the seed + k, as vLLM counts the samples of one request."""
    if seed is None:
        return None
    digest = hashlib.sha256(f"{seed}:{original_index}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
