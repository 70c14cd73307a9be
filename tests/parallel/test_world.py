"""What processes tell one another, and the group that they join."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from engine.command_line import read_settings
from engine.device import make_current
from engine.errors import UserError
from engine.parallel import world as worlds
from engine.parallel.world import ALONE, World, join
from engine.settings import TrainSettings
from engine.training import setup
from engine.training.batches import Batches


def worlds_of(size: int) -> list[World]:
    """Processes that are threads here, with a store in memory."""
    store = dist.HashStore()
    return [World(rank, size, rank, size, store) for rank in range(size)]


def test_values_reach_all_in_order() -> None:
    def talk(world: World) -> list[object]:
        said = [world.broadcast({"from": world.rank}), world.all_gather([world.rank, None])]
        world.wait_for_main()
        return [*said, world.all_gather("é"), world.broadcast(world.rank)]

    with ThreadPoolExecutor(3) as threads:
        heard = list(threads.map(talk, worlds_of(3)))
    assert heard == [[{"from": 0}, [[0, None], [1, None], [2, None]], ["é"] * 3, 0]] * 3
    assert ALONE.broadcast(5) == 5 and ALONE.all_gather(5) == [5]


def test_the_others_wait_for_rank_0_without_limit() -> None:
    """Longer than the store's own limit."""
    main, other = worlds_of(2)
    main.store.set_timeout(timedelta(milliseconds=1))
    waiting = threading.Thread(target=other.wait_for_main)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    main.wait_for_main()
    waiting.join(10)
    assert not waiting.is_alive()


def test_more_processes_than_gpus_are_refused_unless_the_cpu_is_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"--nproc_per_node=2, or train with --device=cpu"):
        join()
    chosen: list[str] = []
    monkeypatch.setattr(worlds, "rendezvous", lambda _: iter([(dist.HashStore(), 3, 4)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: chosen.append(backend))
    assert join(device="cpu").rank == 3 and chosen == ["gloo"]


def test_a_named_gpu_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events, peak memory and bf16's support are asked of the current one."""
    current = [0]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: current.__setitem__(0, index))
    assert make_current(torch.device("cuda:1")) == torch.device("cuda:1") and current == [1]
    assert make_current(torch.device("cuda")) == torch.device("cuda:1")
    assert make_current(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(("kind", "without_waiting"), [("cpu", False), ("mps", False), ("cuda", True)])
def test_only_pinned_memory_is_copied_without_waiting(
    monkeypatch: pytest.MonkeyPatch, kind: str, without_waiting: bool
) -> None:
    copies: list[tuple[torch.device, bool]] = []

    def to(self: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        copies.append((device, non_blocking))
        return self

    monkeypatch.setattr(torch.Tensor, "to", to)
    batches = SimpleNamespace(device=torch.device(kind), micro_batch=1)
    rows = torch.zeros(2, 3, dtype=torch.int64)
    assert len(list(Batches._on_device(batches, rows, rows))) == 2  # type: ignore[arg-type]
    assert copies == [(torch.device(kind), without_waiting)] * 4


def test_several_processes_on_a_device_for_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "find_device", lambda _: torch.device("mps"))
    sources = read_settings(TrainSettings, [], "")
    with pytest.raises(UserError, match=r"on mps one process trains; start train\.py without torchrun"):
        setup.choose_device(sources, None, worlds_of(2)[0])
    assert setup.choose_device(sources, None, ALONE).type == "mps"
