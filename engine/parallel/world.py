"""The process group: this process's rank, and communication between processes.

`torchrun` starts the processes and gives each its rank in environment variables. Tensors are summed by
all-reduce; small values travel as JSON through the store of the rendezvous.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from engine.errors import UserError


@dataclass(frozen=True)
class World:
    """This process's place in the group. Rank 0 prints, decides and writes for all.

    All processes call `broadcast`, `all_gather`, `all_reduce`, `barrier` and `wait_for_main` in the same
    order. With one process they return at once.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    store: Store = field(default_factory=Store)  # where the processes found one another
    _calls: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every process; anything that JSON can hold."""
        if self.size == 1:
            return value
        key = f"call {next(self._calls)}"
        if self.is_main:
            self.store.set(key, json.dumps(value))
        return json.loads(self.store.get(key))

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; anything that JSON can hold."""
        if self.size == 1:
            return [value]
        call = next(self._calls)
        self.store.set(f"call {call}, rank {self.rank}", json.dumps(value))
        keys = [f"call {call}, rank {rank}" for rank in range(self.size)]
        return [json.loads(content) for content in self.store.multi_get(keys)]

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum the tensor over all processes, in place; returns it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait for all processes. Raises RuntimeError after the group's timeout."""
        if self.size > 1:
            dist.barrier()

    def wait_for_main(self) -> None:
        """Wait, without a time limit, until rank 0 has called this (it may be preparing data)."""
        if self.size == 1:
            return
        key = f"call {next(self._calls)}"
        if self.is_main:
            self.store.set(key, "")
        pause = 0.01
        while not self.store.check([key]):
            time.sleep(pause)
            pause = min(1.0, 2 * pause)

    def leave(self) -> None:
        """Leave the group once every process is done. Call it only after a run without errors.

        After an error a process exits without this call, since the others might never arrive. Rank 0 leaves
        last, because without torchrun the store lives in it.
        """
        if self.size == 1:
            return
        self.all_gather("done")
        dist.destroy_process_group()
        if self.is_main:
            self.store.wait([f"rank {rank} has left" for rank in range(1, self.size)])
        else:
            self.store.set(f"rank {self.rank} has left", "")


ALONE = World(rank=0, size=1, local_rank=0, local_size=1)


def join(timeout: float = 1800.0, device: str = "auto") -> World:
    """Join the group described by torchrun's environment; without torchrun, a group of one.

    `device` is the setting of this name. An operation that waits for other processes fails after `timeout`
    seconds. Raises UserError where the machine has too few GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    backend = "gloo"
    if torch.cuda.is_available() and device != "cpu":
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            raise UserError(
                f"{local_size} processes were started on a machine with {gpus} GPUs; start torchrun with "
                f"--nproc_per_node={gpus}, or train with --device=cpu"
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    store, rank, size = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1" and "TORCHELASTIC_RESTART_COUNT" in os.environ:
        # torchrun on one machine keeps its store when it restarts the processes, and gloo would find the
        # addresses of the dead ones there; each attempt gets names of its own.
        store = PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    limit = timedelta(seconds=timeout)
    store.set_timeout(limit)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    return World(rank, size, local_rank, local_size, store)


def describe_ranks(ranks: list[dict[str, Any]]) -> str:
    """One line with the host, device and seed of each process, grouped by host.

    E.g. "node-a: ranks 0 to 7 on cuda:0 to cuda:7; node-b: rank 8 on cuda:0; seed 1337".
    """
    parts = []
    for host, group in itertools.groupby(ranks, lambda rank: rank["host"]):
        first, *others = group
        last = others[-1] if others else first
        numbers = f"ranks {first['rank']} to {last['rank']}" if others else f"rank {first['rank']}"
        end = f" to {last['device']}" if last["device"] != first["device"] else ""
        parts.append(f"{host}: {numbers} on {first['device']}{end}")
    seeds = sorted({rank["seed"] for rank in ranks})
    return f"{'; '.join(parts)}; seed {', '.join(map(str, seeds))}"


def share_of_step(sequences: int, batch_size: int, world: World) -> tuple[int, int]:
    """Micro-batch size and number of micro-batches of this process, for `sequences` per step in all.

    The micro-batch is the largest divisor of a process's share that is no larger than `batch_size`.
    Raises UserError where the processes cannot share the sequences evenly.
    """
    if sequences % world.size:
        fitting = [size for size in range(1, min(sequences, 1024) + 1) if sequences % size == 0]
        raise UserError(
            f"a step of {sequences} sequences (batch_size × gradient_accumulation_steps) cannot be shared "
            f"evenly by {world.size} processes; numbers that can: {', '.join(map(str, fitting))}"
        )
    share = sequences // world.size
    micro_batch = max(size for size in range(1, min(share, batch_size) + 1) if share % size == 0)
    return micro_batch, share // micro_batch
