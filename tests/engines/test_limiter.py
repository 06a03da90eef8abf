"""How many samples are in flight at a server: against servers whose time is computed, not waited for."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tasks.engines import limiter
from tasks.engines.limiter import FIRST_LIMIT, Limiter

TOKENS = 100


@dataclass
class Simulation:
    """A server that makes `speed(n)` tokens a second with n requests in flight, and refuses those above `most`."""

    speed: Callable[[int], float]
    most: int = 10_000
    samples: int = 1
    now: float = 0.0
    refused: int = 0
    in_flight: int = 0
    peak: int = 0
    ends: list[tuple[float, int, asyncio.Future[None]]] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    async def request(self, limit: Limiter, number: int) -> None:
        while True:
            async with limit.room(self.samples):
                sent_at = self.now
                if self.in_flight < self.most:
                    self.in_flight += 1
                    self.peak = max(self.peak, self.in_flight)
                    await self._until(TOKENS * self.in_flight / self.speed(self.in_flight), number)
                    self.in_flight -= 1
                    limit.finished(self.samples, TOKENS)
                    return
                limit.refused(sent_at)
                self.refused += 1
            await self._until(0.5, number)

    async def _until(self, seconds: float, number: int) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self.ends, (self.now + seconds, number, future))
        await future

    async def run(self, limit: Limiter, requests: int) -> None:
        tasks = [asyncio.create_task(self.request(limit, number)) for number in range(requests)]
        while not all(task.done() for task in tasks):
            for _ in range(5):
                await asyncio.sleep(0)
            if self.ends:
                self.now, _, future = heapq.heappop(self.ends)
                future.set_result(None)
        await asyncio.gather(*tasks)


def simulate(monkeypatch: pytest.MonkeyPatch, server: Simulation, most: int = 512, requests: int = 2000) -> Limiter:
    async def run() -> Limiter:
        monkeypatch.setattr(limiter, "time", server)
        limit = Limiter(most, server.samples)
        await server.run(limit, requests)
        return limit

    return asyncio.run(run())


def test_it_grows_as_far_as_the_server_gets_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Simulation(lambda n: 50.0 * min(n, 64))
    limit = simulate(monkeypatch, server)
    assert 32 <= limit.limit <= 128
    assert server.peak <= 256
    assert server.now < 1.35 * 2000 * TOKENS / (50.0 * 64)


def test_a_server_that_takes_one_at_a_time_is_not_flooded(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = simulate(monkeypatch, Simulation(lambda n: 50.0))
    assert limit.limit <= 2 * FIRST_LIMIT


def test_it_keeps_below_what_the_server_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Simulation(lambda n: 50.0 * n, most=20)
    limit = simulate(monkeypatch, server)
    assert 10 <= limit.limit <= 24
    assert server.refused < 2000 / 10
    assert server.now < 1.5 * 2000 * TOKENS / (50.0 * 20)


def test_requests_for_many_samples_run_side_by_side_too(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Simulation(lambda n: 50.0 * n, samples=3 * FIRST_LIMIT)
    simulate(monkeypatch, server, most=24 * FIRST_LIMIT, requests=200)
    assert server.peak == 8
    busy = Simulation(lambda n: 50.0 * n, most=5, samples=3 * FIRST_LIMIT)
    simulate(monkeypatch, busy, most=24 * FIRST_LIMIT, requests=200)
    assert busy.peak == 5


def test_it_never_grows_over_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Simulation(lambda n: 50.0 * n)
    assert simulate(monkeypatch, server, most=40).limit == server.peak == 40


def test_a_request_larger_than_the_limit_goes_alone_and_a_cancelled_one_frees_its_place() -> None:
    async def run() -> None:
        limit = Limiter(4)
        async with limit.room(100):
            waiting = [asyncio.create_task(_hold(limit)) for _ in range(2)]
            await asyncio.sleep(0)
            assert limit.waiting == 2
            waiting[0].cancel()
            await asyncio.sleep(0)
            assert limit.waiting == 1
        await waiting[1]
        assert (limit.in_flight, limit.waiting) == (0, 0)

    asyncio.run(run())


def test_one_that_is_cancelled_as_room_comes_free_gets_none_and_breaks_nothing() -> None:
    async def run() -> None:
        limit = Limiter(4)
        async with limit.room(4):
            waiting = [asyncio.create_task(_hold(limit)) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()  # hears of it only after the room is given on
        assert (limit.in_flight, limit.waiting) == (3, 1)
        waiting[1].cancel()  # holds room that it has not entered yet
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in done] == [asyncio.CancelledError, asyncio.CancelledError, type(None)]
        assert (limit.in_flight, limit.waiting) == (0, 0)

    asyncio.run(run())


async def _hold(limit: Limiter) -> None:
    async with limit.room(3):
        await asyncio.sleep(0)
