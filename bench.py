"""Measure speed, always against something: the machine's own limits, and a baseline run in turns.

    python bench.py train     a training step of the CPU-sized setting, ours and the baseline's
    python bench.py train --config configs/shakespeare_char_fast.py
    python bench.py loss      what the fast setting reaches, and how soon; --compare: beside which setting
    python bench.py sample    tokens per second with the KV cache, small model and GPT-2's shape
    python bench.py start     from the start of train.py to its first step
    python bench.py memory    predicted and measured memory of training, for some shapes
    python bench.py prepare   how fast prepare.py is, against tokenizing alone
    python bench.py scaling   tokens per second of 1, 2, 4, … processes, on the GPUs or on shared cores
    python bench.py network   bandwidth of adding up tensors over processes; across machines under torchrun
    python bench.py profile   a trace of training steps of several processes, and what communication hides

Every figure is a median over rounds with its spread (10th to 90th percentile); ours and the baseline take
turns in processes of their own, so a machine that slows down slows both. The baseline is what one writes
first: fp32 products by the default library, scaled_dot_product_attention, AdamW unfused, memory as the C
library handles it; for sampling, no cache.
"""

import contextlib
import copy
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.config import Parser, TrainSettings, read_settings
from engine.errors import run_script

PLAIN = {
    "gradient_accumulation_steps": 1, "batch_size": 12, "block_size": 64,
    "n_layer": 4, "n_head": 4, "n_embd": 128,
    "bias": False, "learning_rate": 1e-3, "beta2": 0.99, "max_iters": 2000, "warmup_iters": 100,
}  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Run the measurement that the command line names."""
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("what", choices=(*measurements(), "worker"), help="what to measure")
    parser.add_argument(
        "--config", help="train, scaling, profile: a configuration file (default: the plain CPU setting)"
    )
    parser.add_argument(
        "--compare", help="loss: a configuration file to take turns with (default: the plain CPU setting)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="loss: default 1 2 3")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of taking turns (default: 15)")
    parser.add_argument(
        "--kind", choices=("ours", "baseline"), default="ours", help="worker: which of the two to be"
    )
    parser.add_argument(
        "--processes", type=int, help="scaling, network, profile: how many (default: GPUs, or cores)"
    )
    parser.add_argument(
        "--megabytes", type=int, default=2000, help="prepare: size of the text (default: 2000)"
    )
    parser.add_argument(
        "--largest", type=int, default=256, help="network: largest tensor in MiB (default: 256)"
    )
    parser.add_argument(
        "--trace", default="trace.json", help="profile: the file to write (default: trace.json)"
    )
    options = parser.parse_args(arguments)
    if options.what == "worker":
        work(options.kind, options.config)
    else:
        measurements()[options.what](options)


def measurements() -> dict[str, Callable[[Any], None]]:
    """What can be measured, by name."""
    return {
        "train": measure_training,
        "loss": measure_loss,
        "sample": measure_sampling,
        "start": measure_start,
        "memory": measure_memory,
        "prepare": measure_preparing,
        "scaling": measure_scaling,
        "network": measure_network,
        "profile": measure_profile,
    }


def summary(values: Sequence[float]) -> str:
    """Median and spread, e.g. "17.2 (16.8 to 18.1)"."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return f"{statistics.median(values):.3g} ({low:.3g} to {high:.3g})"


def best_time(run: Callable[[], Any], rounds: int) -> float:
    """Seconds of the fastest of several runs after one to warm up: what the machine can do undisturbed."""
    run()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def machine_limits() -> dict[str, float]:
    """This machine's matmul peaks in FLOP/s, and the bandwidth of reading memory in bytes/s."""
    import torch

    limits = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(2, 1024, 1024).to(dtype)
        rates = []
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            rates.append(2 * 1024**3 / best_time(lambda a=a, b=b: a @ b, 15))
        limits[name] = max(rates)
    large = torch.ones(2**27)  # 512 MiB, far beyond the caches
    limits["bandwidth"] = large.nbytes / best_time(large.sum, 7)
    torch.set_float32_matmul_precision("highest")
    print(
        f"machine: {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"fp32 {limits['fp32'] / 1e9:.0f} GFLOP/s, bf16 {limits['bf16'] / 1e9:.0f} GFLOP/s, "
        f"memory {limits['bandwidth'] / 1e9:.1f} GB/s"
    )
    return limits


# ------------------------------------------------------------------------------------------------------------
# training


def measure_training(options: Any) -> None:
    """Time training steps of ours and of the baseline, in turns."""
    from engine.setup import model_config
    from model import flops_per_token

    limits = machine_limits()
    settings = training_settings(options.config)
    workers = {kind: start_worker(kind, options.config) for kind in ("ours", "baseline")}
    times: dict[str, list[float]] = {kind: [] for kind in workers}
    for number in range(options.rounds + 1):
        for kind, worker in workers.items():
            measured = ask(worker)
            if number:  # the first round warms up
                times[kind].append(statistics.median(measured))
    for worker in workers.values():
        worker.kill()
    tokens = settings.sequences_per_step() * settings.block_size
    flops = tokens * flops_per_token(model_config(settings, 65))
    for kind, seconds in times.items():
        rate = flops / statistics.median(seconds)
        print(
            f"{kind:9} {summary([1e3 * value for value in seconds])} ms a step, "
            f"{tokens / statistics.median(seconds):,.0f} tokens/s, "
            f"{rate / 1e9:.0f} GFLOP/s of model arithmetic, {rate / limits['fp32']:.0%} of the fp32 peak"
        )
    ratios = [mine / theirs for mine, theirs in zip(times["ours"], times["baseline"], strict=True)]
    print(f"ours takes {summary([100 * ratio for ratio in ratios])} % of the baseline's time")


def measure_loss(options: Any) -> None:
    """Train two settings to their ends, in turns, seed after seed: validation losses and seconds."""
    from engine.loss_speed import race, report

    plain = ["configs/shakespeare_char.py", *(f"--{name}={value}" for name, value in PLAIN.items())]
    names = [options.config or "configs/shakespeare_char_fast.py", options.compare or "the plain setting"]
    lines = [names[0].split(), plain if options.compare is None else options.compare.split()]
    outcomes = race(lines, options.seeds)
    for name, found in zip(names, outcomes, strict=True):
        print(report(name, found))
    ratios = [mine.seconds / theirs.seconds for mine, theirs in zip(*outcomes, strict=True)]
    print(f"{names[0]} takes {summary([100 * ratio for ratio in ratios])} % of the other's time")


def training_settings(config: str | None) -> TrainSettings:
    """The plain setting, or that of a configuration file on a CPU."""
    if config is None:
        return TrainSettings(**PLAIN)
    return read_settings(TrainSettings, [config], "").settings(on_cpu=True)


def start_worker(kind: str, config: str | None) -> subprocess.Popen[str]:
    """A process that does 20 training steps whenever it is asked to."""
    line = [sys.executable, __file__, "worker", f"--kind={kind}", *([f"--config={config}"] if config else [])]
    return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: subprocess.Popen[str]) -> list[float]:
    """Have a worker do its steps; their seconds."""
    worker.stdin.write("go\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def work(kind: str, config: str | None) -> None:
    """Be a worker: for each line of input do 20 steps and print their seconds."""
    import torch

    from engine.device import Choices, choose_threads, probe_kernels
    from engine.optimizer import clip_gradients, learning_rate_factor, make_optimizer
    from engine.setup import model_config
    from model import GPT

    settings = training_settings(config)
    ours = kind == "ours"
    choices = Choices("cpu", "float32", False, choose_threads(None, 1))
    if ours:
        shape = (settings.batch_size, settings.block_size, settings.n_head, settings.n_embd)
        probe_kernels(choices, *shape, settings.dropout)
        choices.apply()
    model = GPT(model_config(settings, 65))
    model.init_weights(settings.seed)
    model.use_attention_kernel(choices.attention_kernel)
    optimizer = make_optimizer(model, settings)
    if not ours:
        for group in optimizer.param_groups:
            group["fused"] = False
    clip = clip_gradients if ours else torch.nn.utils.clip_grad_norm_
    rows = torch.randint(65, (settings.batch_size, settings.block_size + 1))
    number = 0
    for _ in sys.stdin:
        times = []
        for _ in range(20):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_factor(number, settings) * group["peak"]
            for _ in range(settings.gradient_accumulation_steps):
                model(rows[:, :-1], rows[:, 1:])[1].backward()
            clip(model.parameters(), settings.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            number += 1
            times.append(time.perf_counter() - began)
        print(json.dumps(times), flush=True)


# ------------------------------------------------------------------------------------------------------------
# sampling


def measure_sampling(options: Any) -> None:
    """Tokens per second with the cache, as sample.py draws them, against recomputing the text for each."""
    import torch

    from engine.device import keep_freed_memory
    from engine.packing import pack_for_generation
    from model import GPT, GPTConfig, count_parameters

    limits = machine_limits()
    keep_freed_memory()
    small = GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128, bias=False)
    large = GPTConfig(bias=False)
    for name, config, prompt, new, batches, dtype in (
        ("0.8 M", small, 1, 500, (1, 16), torch.float32),
        ("124 M fp32", large, 512, 40, (1,), torch.float32),
        ("124 M bf16", large, 512, 80, (1,), torch.bfloat16),
    ):
        model = GPT.empty(config, "cpu", dtype).eval()
        model.init_weights(0)
        plain = copy.deepcopy(model)
        pack_for_generation(model)
        weights = (
            sum(count_parameters(config).values()) - config.block_size * config.n_embd
        ) * plain.head.weight.itemsize
        for batch in batches:
            ids = torch.randint(config.vocab_size, (batch, prompt))
            rates, naive = [], []
            for _ in range(max(3, options.rounds // 3)):
                rates.append(batch / seconds_per_token(model, ids, new))
                naive.append(batch / seconds_without_cache(plain, ids, 20 if prompt == 1 else 1))
            ratio = statistics.median(ours / theirs for ours, theirs in zip(rates, naive, strict=True))
            read = statistics.median(rates) / batch * weights / limits["bandwidth"]
            print(
                f"{name}, {batch} at once: {summary(rates)} tokens/s with the cache, "
                f"{summary(naive)} without: {ratio:.1f} times as fast; "
                f"reads its weights at {read:.0%} of the memory's bandwidth"
            )


def seconds_per_token(model: Any, ids: Any, new: int) -> float:
    """Seconds of one decoding step after the prompt has been read."""
    tokens = model.stream(ids, new, temperature=0.8)
    next(tokens)
    began = time.perf_counter()
    count = sum(1 for _ in tokens)
    return (time.perf_counter() - began) / count


def seconds_without_cache(model: Any, ids: Any, new: int) -> float:
    """Seconds of a token where each one recomputes the last `block_size` positions."""
    import torch

    block = model.config.block_size
    ids = (
        torch.cat((ids, ids[:, :1].repeat(1, block)), dim=1)[:, : max(block, ids.shape[1])]
        if ids.shape[1] == 1
        else ids
    )
    began = time.perf_counter()
    with torch.inference_mode():
        for _ in range(new):
            logits = model.head(model.features(ids[:, -block:])[:, -1])
            ids = torch.cat((ids, logits.float().softmax(-1).multinomial(1)), dim=1)
    return (time.perf_counter() - began) / new


# ------------------------------------------------------------------------------------------------------------
# starting


def measure_start(options: Any) -> None:
    """From the start of train.py to its first step, against importing torch and one optimizer step."""
    least = "import torch; p = torch.nn.Parameter(torch.ones(2)); p.sum().backward(); "
    least += "torch.optim.AdamW([p]).step()"
    root = Path(__file__).resolve().parent
    times: dict[str, list[float]] = {"least": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("Something to read, again and again. " * 2000)
        run = [
            sys.executable,
            str(root / "train.py"),
            "--dataset=text",
            "--out_dir=r",
            "--init_from=auto",
            "--max_iters=1",
        ]
        run += [f"--{name}={value}" for name, value in PLAIN.items() if name != "max_iters"]
        run += ["--sample_tokens=0", "--eval_iters=1", "--eval_interval=100"]
        subprocess.run(
            [sys.executable, str(root / "prepare.py"), "text.txt"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        for number in range(options.rounds + 1):
            for name, line in (("least", [sys.executable, "-c", least]), ("ours", run)):
                subprocess.run(["rm", "-rf", "r"], cwd=folder, check=True)
                began = time.perf_counter()
                subprocess.run(line, cwd=folder, check=True, capture_output=True, env=os.environ)
                if number:
                    times[name].append(time.perf_counter() - began)
    ratios = [ours / least for ours, least in zip(times["ours"], times["least"], strict=True)]
    print(f"import torch and one optimizer step: {summary(times['least'])} s")
    print(f"train.py with one step, two small evaluations and a checkpoint: {summary(times['ours'])} s")
    print(f"ratio {summary(ratios)}")


# ------------------------------------------------------------------------------------------------------------
# memory, preparing


def measure_memory(options: Any) -> None:
    """Predicted and measured memory of three steps, for shapes that take a gigabyte and more."""
    from engine.memory import Setup, gigabytes
    from engine.memory_check import check_memory
    from model import GPTConfig

    wide = GPTConfig(vocab_size=256, block_size=512, n_layer=6, n_head=8, n_embd=512, bias=False)
    dropping = dataclasses.replace(wide, dropout=0.1)
    turning = dataclasses.replace(wide, position="rotary", qk_norm=True, activation="relu2")
    gpt2 = GPTConfig(vocab_size=50304, block_size=256, bias=False)
    for config, setup in (
        (wide, Setup(8)),
        (wide, Setup(8, attention_kernel="matmul")),
        (dropping, Setup(8)),
        (dropping, Setup(8, attention_kernel="matmul")),
        (turning, Setup(8)),
        (wide, Setup(12, dtype="bfloat16")),
        (gpt2, Setup(4)),
        (gpt2, Setup(4, micro_steps=2)),
        (gpt2, Setup(2, optimizer="muon")),
    ):
        predicted, measured = check_memory(config, setup)
        print(
            f"{config.n_layer} × {config.n_embd}, block {config.block_size}, vocabulary {config.vocab_size}, "
            f"{setup.micro_steps} × {setup.micro_batch} sequences, {setup.optimizer}, {setup.dtype}, "
            f"attention {setup.attention_kernel}, dropout {config.dropout}, {config.position}: "
            f"predicted {gigabytes(predicted.total)}, measured {gigabytes(measured)}, "
            f"ratio {predicted.total / measured:.2f}",
            flush=True,
        )


def measure_preparing(options: Any) -> None:
    """How fast a text that is made up on the spot becomes token files."""
    from engine.prepare_speed import measure_prepare

    found = measure_prepare(options.megabytes * 10**6)
    print(
        f"{options.megabytes} MB of text, {found['workers']} workers: from JSON lines to token files "
        f"{found['megabytes_per_second']:.1f} MB/s, tiktoken alone on as many threads "
        f"{found['tiktoken_megabytes_per_second']:.1f} MB/s, ratio {found['ratio']:.2f}; "
        f"the largest process took {found['largest_process']:.0f} MiB"
    )


# ------------------------------------------------------------------------------------------------------------
# several processes


def default_processes() -> int:
    """One for each GPU; without GPUs one for each core."""
    import torch

    from engine.workers import available_cores

    return torch.cuda.device_count() or available_cores()


def shape_of(settings: TrainSettings) -> Any:
    """The model of a setting, with characters on a CPU and GPT-2's vocabulary on GPUs."""
    import torch

    from engine.setup import model_config

    return model_config(settings, 50304 if torch.cuda.is_available() else 65)


def is_one_of_several() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def measure_scaling(options: Any) -> None:
    """Tokens per second of 1, 2, 4, … processes on the same sequences, taking turns."""
    settings = training_settings(options.config)
    if is_one_of_several():
        with the_world() as world:
            from engine.parallel_speed import step_seconds

            seconds = step_seconds(settings, shape_of(settings), world, 20)
            if world.is_main:
                print(seconds)
        return
    import torch

    from engine.parallel_speed import torchrun

    most = options.processes or default_processes()
    numbers = [number for number in range(1, most + 1) if settings.sequences_per_step() % number == 0]
    numbers = [number for number in numbers if number & (number - 1) == 0 or number == most]
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    config = [f"--config={options.config}"] if options.config else []
    for _ in range(max(3, options.rounds // 3)):
        for number in numbers:
            seconds = float(torchrun(number, "scaling", *config)[-1])
            rates[number].append(settings.sequences_per_step() * settings.block_size / seconds)
    on_gpus = torch.cuda.is_available()
    print("each process has a GPU" if on_gpus else f"the processes share {default_processes()} cores")
    for number, values in rates.items():
        best = number if on_gpus else 1  # times as fast as one process, at best
        shares = [100 * mine / one / best for mine, one in zip(values, rates[1], strict=True)]
        print(f"{number} processes: {summary(values)} tokens/s, efficiency {summary(shares)} %")


def measure_network(options: Any) -> None:
    """All-reduces of growing tensors, by the processes of torchrun or by some started here."""
    from engine.parallel_speed import all_reduce_speeds, torchrun

    if not is_one_of_several():
        print(
            "\n".join(
                torchrun(options.processes or default_processes(), "network", f"--largest={options.largest}")
            )
        )
        return
    with the_world() as world:
        for row in all_reduce_speeds(world, options.largest):
            if world.is_main:
                print(
                    f"{row['mebibytes']:4.0f} MiB over {world.size} processes: "
                    f"{1e3 * row['seconds']:8.2f} ms, "
                    f"algorithm {row['algorithm'] / 1e9:7.2f} GB/s, "
                    f"bus {row['bus'] / 1e9:7.2f} GB/s",
                    flush=True,
                )


def measure_profile(options: Any) -> None:
    """A trace for ui.perfetto.dev or chrome://tracing, and how much of the communication is hidden."""
    from engine.parallel_speed import profile_steps, torchrun

    if not is_one_of_several():
        path = Path(options.trace).resolve()
        config = [f"--config={options.config}"] if options.config else []
        lines = torchrun(options.processes or default_processes(), "profile", f"--trace={path}", *config)
        print("\n".join(lines))
        return
    settings = training_settings(options.config)
    with the_world() as world:
        share = profile_steps(settings, shape_of(settings), world, Path(options.trace))
        if world.is_main:
            print(
                f"{options.trace}: three steps of rank 0 of {world.size}; {share:.0%} of the time of its "
                f"communication lies beside the arithmetic of the backward pass"
            )


@contextlib.contextmanager
def the_world() -> Iterator[Any]:
    """This process among its peers, until the measurement is over."""
    from engine import distributed

    world = distributed.start()
    try:
        yield world
        world.wait()
    finally:
        world.stop()


if __name__ == "__main__":
    run_script(main)
