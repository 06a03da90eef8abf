"""Memory for media: what is being prepared counts, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import random

from tasks.engines.media_room import FIRST_GUESS, MediaRoom

MOST = 1000


def test_room_is_kept_for_what_is_being_prepared() -> None:
    async def run() -> None:
        room = MediaRoom(MOST)
        first = [await room.take() for _ in range(FIRST_GUESS)]
        waiting = asyncio.create_task(room.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        room.settle(first[0], 10)
        await waiting
        assert room.held <= MOST

    asyncio.run(run())


def test_text_takes_no_room() -> None:
    async def run() -> None:
        room = MediaRoom(MOST)
        room.settle(await room.take(), 0)
        assert [await room.take() for _ in range(100)] == [0] * 100

    asyncio.run(run())


def test_a_record_larger_than_all_room_goes_alone() -> None:
    async def run() -> None:
        room = MediaRoom(MOST)
        for _ in range(3):
            room.settle(await room.take(), 5 * MOST)
            waiting = asyncio.create_task(room.take())
            await asyncio.sleep(0)
            assert not waiting.done()
            room.give_back(5 * MOST)
            room.settle(await waiting, 0)
        assert room.held == 0

    asyncio.run(run())


def test_in_flight_and_prepared_stay_within_the_room() -> None:
    """After the first sizes are known, sizes vary, some preparations fail, and all that was taken comes back."""

    async def run() -> None:
        source, room, peak = random.Random(1), MediaRoom(MOST), 0

        async def record(taken: int) -> None:
            size = source.choice([0, 40, 100])
            await asyncio.sleep(source.random() / 100)
            room.settle(taken, size)
            await asyncio.sleep(source.random() / 100)
            room.give_back(size)

        tasks = []
        for _ in range(300):
            tasks.append(asyncio.create_task(record(await room.take())))
            peak = max(peak, room.held)
        await asyncio.gather(*tasks)
        assert room.held == 0
        assert MOST / 2 < peak <= MOST + 100

    asyncio.run(run())
