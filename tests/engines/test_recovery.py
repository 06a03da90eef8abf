"""The pool's judgements one by one: who hangs, whom to blame, which settings are gentler, when to give up."""

from __future__ import annotations

import time

import pytest

from tasks.config import EngineConfig
from tasks.engines import watchdog
from tasks.engines.gentler import gentler, is_out_of_memory
from tasks.engines.hunt import Hunt, Hunts
from tasks.engines.recovery import MAX_FRUITLESS, judge
from tasks.engines.slot import Slot
from tasks.engines.view import EngineView
from tasks.records import Shard

CONFIG = EngineConfig(stall_timeout=10, start_timeout=100)
SHARD = Shard(index=0, start=0, records=1000, sha256="", parts=())


def running(*in_flight: int, shards: bool = True) -> Slot:
    slot = Slot(EngineView(0))
    slot.begin_launch()
    slot.ready({"max_num_seqs": 64, "max_num_batched_tokens": 4096})
    if shards:
        slot.give(SHARD)
    for record in in_flight:
        slot.begin(record)
    return slot


def test_an_engine_hangs_when_it_makes_no_token_or_gets_nothing_into_flight() -> None:
    now = time.monotonic()
    assert watchdog.complaint(running(1), CONFIG, now + 9) is None
    assert "no token for 10 s" in str(watchdog.complaint(running(1), CONFIG, now + 11))
    assert watchdog.complaint(running(), CONFIG, now + 29) is None
    assert "no request in flight for 30 s" in str(watchdog.complaint(running(), CONFIG, now + 31))
    assert watchdog.complaint(running(shards=False), CONFIG, now + 1000) is None
    starting = Slot(EngineView(0))
    starting.begin_launch()
    assert "not ready after 100 s" in str(watchdog.complaint(starting, CONFIG, now + 101))


def test_time_that_we_stood_still_ourselves_makes_nobody_hang() -> None:
    """Ctrl-Z and fg after an hour."""
    slot = running(1)
    slot.stood_still(3600)
    assert watchdog.complaint(slot, CONFIG, time.monotonic() + 3605) is None


def test_figures_prove_life_only_while_they_change() -> None:
    slot = running(1)
    stats = {"tokens": 5, "running": 1, "in_flight": 1, "kv_cache_usage": 0.1, "progress": 3}
    slot.note(stats)
    slot.alive_at = 0.0
    slot.note(stats)
    assert slot.alive_at == 0.0
    slot.note(stats | {"tokens": 6})
    assert slot.alive_at > 0.0


def test_the_time_without_requests_adds_up_over_restarts() -> None:
    slot = running(1)
    stats = {"tokens": 5, "running": 1, "in_flight": 1, "kv_cache_usage": 0.1}
    slot.note(stats)
    assert slot.view.idle_seconds is None  # a server does not tell
    slot.note(stats | {"idle_seconds": 2.0})
    slot.died()
    slot.note(stats | {"idle_seconds": 0.5})
    assert slot.view.idle_seconds == 2.5


@pytest.mark.parametrize(("window", "steps"), [(1, 2), (2, 3), (64, 8), (512, 11), (513, 11)])
def test_a_culprit_is_found_in_logarithmic_time(window: int, steps: int) -> None:
    hunts, hunt, in_flight, died = Hunts(), Hunt(), set(range(window)), 0
    while hunts.died(hunt, in_flight, [SHARD], "engine_crash") is None:
        died += 1
        hunt = hunts.resume(SHARD)
        in_flight = set(range(hunt.records_at_once))
    assert died + 1 == steps
    assert hunts.poison == {0: "engine_crash"}
    assert not hunts.waits_in(SHARD), "all others are set free"


def test_a_record_is_not_blamed_for_two_different_ends() -> None:
    hunts = Hunts()
    assert hunts.died(Hunt(), {7}, [SHARD], "engine_stall") is None
    assert hunts.died(Hunt(), {7}, [SHARD], "engine_crash") is None
    assert hunts.died(Hunt(), {7}, [SHARD], "engine_crash") == 7


def test_out_of_memory_is_met_step_by_step_and_costs_no_failure() -> None:
    slot, steps = running(), []
    for _ in range(3):
        slot.last_words = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
        verdict = judge(slot, set(), True, Hunts(), CONFIG)
        assert not verdict.give_up
        steps.append(slot.overrides)
    assert [step["max_num_seqs"] for step in steps] == [32, 16, 8]
    assert [step["max_num_batched_tokens"] for step in steps] == [2048, 1024, 512]
    assert [step["gpu_memory_utilization"] for step in steps] == [0.8, 0.7, 0.6]


def test_no_room_for_the_cache_does_not_take_more_from_it() -> None:
    words = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"
    assert is_out_of_memory(words)
    assert gentler({}, {"max_num_seqs": 8}, CONFIG, words)["gpu_memory_utilization"] == 0.9


def test_gentler_settings_come_to_an_end() -> None:
    last, now = None, {}
    for _ in range(20):
        last, now = now, gentler(now, {}, CONFIG)
    assert last == now == {"max_num_seqs": 1, "max_num_batched_tokens": 512, "gpu_memory_utilization": 0.3}


def test_a_gentler_setting_that_the_model_refuses_is_taken_back() -> None:
    slot = running()
    slot.overrides = {"max_num_seqs": 8, "max_num_batched_tokens": 512}
    slot.last_words = "ValueError: max_num_batched_tokens (512) is smaller than max_model_len (4096)"
    assert not judge(slot, set(), True, Hunts(), CONFIG).give_up
    assert slot.overrides == {"max_num_seqs": 8}
    slot.ending = slot.last_words = "made no token"
    judge(slot, {1}, False, Hunts(), CONFIG)
    assert slot.overrides["max_num_seqs"] == 4
    assert "max_num_batched_tokens" not in slot.overrides


def test_a_start_that_hung_is_tried_again_without_cuda_graphs_and_stays_without() -> None:
    slot = Slot(EngineView(0))
    slot.begin_launch()
    slot.ending = slot.last_words = "not ready after 100 s"
    verdict = judge(slot, set(), True, Hunts(), CONFIG)
    assert not verdict.give_up
    assert slot.overrides["enforce_eager"] is True
    assert "enforce_eager True" in verdict.step
    slot.begin_launch()
    slot.ready({})
    slot.ending = slot.last_words = "no token for 10 s"
    judge(slot, {1, 2}, False, Hunts(), CONFIG)
    assert slot.overrides["enforce_eager"] is True


def test_settings_that_no_start_can_mend_are_given_up_at_once_and_others_after_two() -> None:
    slot = Slot(EngineView(0))
    slot.begin_launch()
    slot.last_words = "ValueError: Model architectures ['NoSuch'] are not supported"
    assert judge(slot, set(), True, Hunts(), CONFIG).give_up
    slot = Slot(EngineView(0))
    slot.begin_launch()
    slot.last_words = "OSError: [Errno 98] Address already in use"
    assert not judge(slot, set(), True, Hunts(), CONFIG).give_up
    assert judge(slot, set(), True, Hunts(), CONFIG).give_up


def test_crashes_that_no_record_is_to_blame_for_are_met_with_gentler_settings() -> None:
    slot, hunts = running(1, 2, 3, 4), Hunts()
    for fruitless in range(MAX_FRUITLESS):
        slot.last_words = "killed by signal 11"
        assert slot.fruitless == fruitless
        judge(slot, {1, 2, 3, 4}, False, hunts, CONFIG)
        assert not slot.overrides
        slot.hunt = hunts.resume(SHARD)
        for record in (1, 2, 3, 4):
            slot.end(record)
    judge(slot, {5, 6}, False, hunts, CONFIG)
    assert slot.overrides["max_num_seqs"] == 32


def test_when_the_culprit_of_hangs_is_found_the_usual_settings_are_back() -> None:
    slot, hunts = running(7), Hunts()
    for _ in range(2):
        slot.ending = slot.last_words = "made no token"
        verdict = judge(slot, {7}, False, hunts, CONFIG)
        slot.hunt = hunts.resume(SHARD)
    assert hunts.poison == {7: "engine_stall"}
    assert "record 7 is to blame" in verdict.step
    assert slot.overrides == {}
