"""What training would take on more GPUs than are here: memory, traffic and efficiency, by calculation.

    python -m engine.scaling
    python -m engine.scaling --mfu 0.5 --between_nodes 150

Nothing in this table was run. It follows from the model's shape, `engine.memory`, and these assumptions:

    compute      the step's arithmetic (model.flops_per_token) at `mfu` of the peak; recompute adds a third
    DDP          one all-reduce of the gradients a step, 2 (N - 1) / N of their bytes sent by each GPU, behind
                 the backward pass of the last micro-batch
    FSDP         each micro-batch gathers the weights twice in half precision, each step scatters the
                 gradients once in full precision, (N - 1) / N of the bytes each, behind the arithmetic
    bandwidth    what a ring moves through each GPU ("bus bandwidth"): within one node of eight over NVLink,
                 between nodes over eight 400 Gb/s links a node
    latency      a collective of DDP crosses a tree twice, one of FSDP goes round a ring
"""

import argparse
import math
from dataclasses import dataclass, fields

from engine.memory import FITS, Setup, block_parameters, predict
from model import GPTConfig, count_parameters, flops_per_token

GPUS_OF_A_NODE = 8
BUCKET = 25 * 2**20  # bytes that DDP sends at a time

MODELS = {  # the shape, and tokens of a step: about those of Brown et al., 2020, table 2.1
    "124M": (GPTConfig(vocab_size=50304, bias=False), 524_288),
    "1.5B": (GPTConfig(vocab_size=50304, n_layer=48, n_head=25, n_embd=1600, bias=False), 1_048_576),
    "175B": (
        GPTConfig(vocab_size=50304, block_size=2048, n_layer=96, n_head=96, n_embd=12288, bias=False),
        4_194_304,
    ),
}


@dataclass(frozen=True)
class Assumptions:
    """Of an H100 SXM and its network; bandwidths in GB/s, times in microseconds."""

    memory: float = 80.0  # GB
    peak: float = 989.0  # TFLOP/s, dense bf16, from the data sheet
    mfu: float = 0.4
    within_node: float = 360.0  # 80% of NVLink's 450 GB/s in each direction
    between_nodes: float = 320.0  # 80% of the 400 GB/s of a node's eight links
    hop: float = 1.5  # from one GPU to the next, on average: seven of eight hops stay within a node

    def bandwidth(self, gpus: int) -> float:
        """Bytes a second that a ring over so many GPUs moves through each."""
        return 1e9 * (self.within_node if gpus <= GPUS_OF_A_NODE else self.between_nodes)


@dataclass(frozen=True)
class Plan:
    """One row: a model on so many GPUs. Bytes and seconds of a step and a GPU; None where nothing fits."""

    mode: str
    micro_batch: int = 0
    micro_steps: int = 0
    recompute: bool = False
    memory: int = 0
    sent: float = 0.0
    compute: float = 0.0
    communication: float = 0.0
    efficiency: float | None = None
    remark: str = ""


def all_reduce_bytes(size: float, gpus: int) -> float:
    """Bytes that each GPU sends when a ring adds up tensors of `size` bytes (Patarasuk and Yuan, 2009)."""
    return 2 * (gpus - 1) / gpus * size


def gather_bytes(size: float, gpus: int) -> float:
    """Bytes that each GPU sends when a ring gathers, or scatters the sum of, `size` bytes altogether."""
    return (gpus - 1) / gpus * size


def plan(config: GPTConfig, tokens: int, gpus: int, mode: str, assumed: Assumptions) -> Plan:
    """The step of a model under "ddp" or "fsdp", with the largest micro-batch that fits."""
    sequences = tokens // config.block_size
    if sequences < gpus:
        return Plan(mode, remark=f"{sequences} sequences a step: less than one for each GPU")
    share = sequences // gpus
    divisors = [size for size in range(share, 0, -1) if share % size == 0]
    for recompute in (False, True):
        for micro_batch in divisors:
            setup = Setup(
                micro_batch, share // micro_batch, dtype="bfloat16", device="cuda", processes=gpus,
                parallel=mode, recompute=recompute,
            )  # fmt: skip
            memory = predict(config, setup).total
            if memory <= FITS * assumed.memory * 1e9:
                return timed(config, setup, memory, tokens, assumed)
    return Plan(
        mode, memory=memory, remark=f"needs {memory / 1e9:,.0f} GB even with one sequence and recompute"
    )


def timed(config: GPTConfig, setup: Setup, memory: int, tokens: int, assumed: Assumptions) -> Plan:
    """Compute and communication of a step, and the share of the time that is compute."""
    gpus, parameters = setup.processes, sum(count_parameters(config).values())
    arithmetic = tokens / gpus * flops_per_token(config) * (4 / 3 if setup.recompute else 1)
    compute = arithmetic / (assumed.mfu * assumed.peak * 1e12)
    hop = 1e-6 * assumed.hop
    if setup.parallel == "ddp":
        sent = all_reduce_bytes(4 * parameters, gpus)
        delay = -(-4 * parameters // BUCKET) * 2 * math.log2(gpus) * hop
        hidden = compute / setup.micro_steps * (3 / 4 if setup.recompute else 2 / 3)
        alone = (
            (4 * parameters % BUCKET or BUCKET) / BUCKET * all_reduce_bytes(BUCKET, gpus)
        )  # the last bucket
    else:
        sent = gather_bytes(2 * 2 * parameters * setup.micro_steps + 4 * parameters, gpus)
        delay = (config.n_layer + 1) * (2 * setup.micro_steps + 1) * (gpus - 1) * hop
        hidden = compute
        alone = gather_bytes(2 * block_parameters(config), gpus)  # the first block, which nothing can hide
    communication = sent / assumed.bandwidth(gpus) + delay
    exposed = max(communication - hidden, alone / assumed.bandwidth(gpus))
    remark = "communication takes longer than what can hide it" if communication > hidden else ""
    return Plan(
        setup.parallel, setup.micro_batch, setup.micro_steps, setup.recompute, memory, sent, compute,
        communication, compute / (compute + exposed), remark,
    )  # fmt: skip


def tokens_that_hide_gathering(assumed: Assumptions) -> float:
    """Tokens of a micro-batch on a GPU below which FSDP's gathering between nodes outlasts the arithmetic.

    Gathering twice sends 4 bytes a parameter, and a token costs 6 operations a parameter, so the number of
    parameters does not matter.
    """
    return 4 / (1e9 * assumed.between_nodes) / (6 / (assumed.mfu * assumed.peak * 1e12))


def widest_block(assumed: Assumptions) -> int:
    """Channels at which two blocks (12 C² parameters each), their gradients and nothing else fill a GPU."""
    return int(math.sqrt(FITS * assumed.memory * 1e9 / (2 * (2 + 4) * 12)))


def limits(assumed: Assumptions) -> list[str]:
    """Where sharding by data alone ends, and tensor or pipeline parallelism would have to begin."""
    most = ", ".join(f"{name} {tokens // config.block_size:,}" for name, (config, tokens) in MODELS.items())
    return [
        f"GPUs beyond which a step has less than one sequence for each: {most}.",
        f"Tokens of a micro-batch below which gathering outlasts the arithmetic under FSDP: "
        f"{tokens_that_hide_gathering(assumed):,.0f}.",
        f"Channels beyond which two gathered blocks and their gradients fill a GPU: "
        f"{widest_block(assumed):,}.",
    ]


def rows(assumed: Assumptions) -> list[str]:
    """The table, a line of Markdown each."""
    lines = [
        "| model | GPUs | mode | micro-batch × steps | recompute | memory of a GPU | sent by a GPU | compute "
        "| communication | efficiency | remark |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (config, tokens) in MODELS.items():
        for gpus in (8, 64, 1024):
            for mode in ("ddp", "fsdp"):
                row = plan(config, tokens, gpus, mode, assumed)
                cells = [name, f"{gpus:,}", mode.upper()]
                if row.efficiency is None:
                    cells += ["none", "", "", "", "", "", "", row.remark]
                else:
                    cells += [
                        f"{row.micro_batch} × {row.micro_steps}", "yes" if row.recompute else "no",
                        f"{row.memory / 1e9:.1f} GB", f"{row.sent / 1e9:,.1f} GB", f"{row.compute:.3g} s",
                        f"{row.communication:.3g} s", f"{row.efficiency:.0%}", row.remark,
                    ]  # fmt: skip
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Print the table under the assumptions that the command line changes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in fields(Assumptions):
        parser.add_argument(
            f"--{field.name}", type=float, default=field.default, help=f"default: {field.default}"
        )
    assumed = Assumptions(**vars(parser.parse_args()))
    print("\n".join([*rows(assumed), "", *limits(assumed)]))


if __name__ == "__main__":
    main()
