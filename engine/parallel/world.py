"""One process or many: the few collective operations that training needs, each trivial for one process.

`torchrun` starts the processes and says in environment variables which is which.
"""

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from engine.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among its peers. Rank 0 speaks, decides and writes for all."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    store: dist.Store | None = None  # where the processes found each other

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """The value of rank `source`, anything that JSON holds, on every process."""
        if self.size == 1:
            return value
        length = torch.zeros(1, dtype=torch.int64)
        if self.rank == source:
            content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
            length[0] = len(content)
        dist.broadcast(length, src=source)
        if self.rank != source:
            content = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(content, src=source)
        return json.loads(content.numpy().tobytes())

    def collect(self, value: Any) -> list[Any]:
        """The values of all processes by rank, anything that JSON holds, on every process."""
        if self.size == 1:
            return [value]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(content)]))
        padded = torch.zeros(max(map(int, lengths)), dtype=torch.uint8)
        padded[: len(content)] = content
        contents = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(contents, padded)
        return [
            json.loads(whole[: int(length)].numpy().tobytes())
            for whole, length in zip(contents, lengths, strict=True)
        ]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, replaced by its sum over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Return when every process has called it."""
        if self.size > 1:
            dist.barrier()

    def stop(self) -> None:
        """Leave the group."""
        if self.size > 1:
            dist.destroy_process_group()


ALONE = World(rank=0, size=1, local_rank=0, local_size=1)


def start(timeout: float = 1800.0) -> World:
    """Join the group that torchrun's environment describes; a world of one without torchrun.

    A collective operation that has waited for `timeout` seconds fails.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    local_rank = int(os.environ["LOCAL_RANK"])
    backend = "gloo"
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes were started on a machine with "
                f"{torch.cuda.device_count()} GPUs; start torchrun with "
                f"--nproc_per_node={torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    store, rank, size = next(dist.rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1" and "TORCHELASTIC_RESTART_COUNT" in os.environ:
        # torchrun on one machine keeps its store when it restarts the processes, and gloo would find the
        # addresses of the dead ones there; each attempt gets names of its own.
        store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    return World(rank, size, local_rank, int(os.environ["LOCAL_WORLD_SIZE"]), store)


def describe_ranks(ranks: list[dict[str, Any]]) -> str:
    """Host, device and seed of each process in a line, those of one host together.

    E.g. "node-a: ranks 0 to 7 on cuda:0 to cuda:7; node-b: rank 8 on cuda:0; seed 1337".
    """
    hosts: dict[str, list[dict[str, Any]]] = {}
    for rank in ranks:
        hosts.setdefault(rank["host"], []).append(rank)
    parts = []
    for host, there in hosts.items():
        first, last = there[0], there[-1]
        several, devices = len(there) > 1, first["device"]
        numbers = f"ranks {first['rank']} to {last['rank']}" if several else f"rank {first['rank']}"
        devices += f" to {last['device']}" if last["device"] != devices else ""
        parts.append(f"{host}: {numbers} on {devices}")
    seeds = sorted({rank["seed"] for rank in ranks})
    return f"{'; '.join(parts)}; seed {', '.join(map(str, seeds))}"


def share_of_step(sequences: int, batch_size: int, world: World) -> tuple[int, int]:
    """(micro-batch size, micro-batches of this process) for a step of so many sequences over all processes.

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
