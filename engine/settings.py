"""Settings of all scripts: names, defaults, meanings and checks. Imports no torch, so `--help` is quick.

    defaults < configuration file < its `cpu` part, on a CPU < command line

A configuration file is Python and runs as such, in a namespace of its own; only run one that you trust.
The names are nanoGPT's where nanoGPT has the setting, and so are the defaults, except for:

    device, dtype, compile   "auto": what the machine has
    out_dir                  None: out/NAME, named after the configuration file
    lr_decay_iters, min_lr   None: max_iters and a tenth of learning_rate (as nanoGPT's numbers are)
    num_samples              3: ten texts do not fit on a screen
"""

import ast
import dataclasses
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from engine.errors import UserError
from engine.runs import similar_run

AUTO = "auto"
STARTS = ("scratch", "resume", "auto")
NEWEST = "run:"  # run:NAME is the newest run of this name, which must be finished
GPT2_SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
MODEL_FILE = Path(__file__).resolve().parents[1] / "model.py"
FROM_DATA = ("vocab_size", "separator")  # fields of GPTConfig that are not settings


def setting(default: Any, meaning: str, **limits: float) -> Any:
    """A field with its help text and limits: `at_least`, `above`, `at_most`, `below`."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "limits": limits})


def model_settings() -> Iterator[tuple[str, Any, Any]]:
    """Name, type and field of each setting of the model: GPTConfig's fields, whose comments are the meanings.

    They are read from the text of model.py, which would import torch. Raises UserError for other types.
    """
    text = MODEL_FILE.read_text(encoding="utf-8")
    lines = text.splitlines()
    classes = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
    config = next(node for node in classes if node.name == "GPTConfig")
    for node in config.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            name, meaning = node.target.id, lines[(node.end_lineno or node.lineno) - 1].partition("#")[2]
            if name not in FROM_DATA:
                yield name, type_of(node.annotation), setting(ast.literal_eval(node.value), meaning.strip())


def type_of(annotation: ast.expr) -> Any:
    """The type of an annotation such as `int`, `float | None` or `Literal["a", "b"]`. Raises UserError."""
    match annotation:
        case ast.Name(id="int" | "float" | "bool" | "str" as name):
            return {"int": int, "float": float, "bool": bool, "str": str}[name]
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return operator.or_(type_of(left), type_of(right))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return Literal[ast.literal_eval(choices)]
    raise UserError(
        f"model.py, line {annotation.lineno}: a setting's type is int, float, bool, str, Literal[…], "
        f"or one of them | None, and not {ast.unparse(annotation)}"
    )


if TYPE_CHECKING:
    from model import GPTConfig as ModelSettings
else:
    ModelSettings = dataclasses.make_dataclass("ModelSettings", model_settings(), frozen=True)


@dataclass(frozen=True)
class TrainSettings(ModelSettings):
    """Settings of train.py."""

    # data
    dataset: str = setting("openwebtext", "data set: the name of a folder in data/")
    batch_size: int = setting(12, "sequences that one process works on at a time", at_least=1)
    gradient_accumulation_steps: int = setting(
        40, "batch_size times this is the number of sequences of a step, over all processes", at_least=1
    )
    documents: Literal["joined", "masked", "aligned"] = setting(
        "joined",
        "joined: one text, as GPT-2 reads them; masked: each is read as if alone; aligned: masked, and "
        "sequences begin where documents do",
    )
    # optimizer and schedule
    optimizer: Literal["adamw", "muon"] = setting(
        "adamw", "muon: for the matrices of the blocks; AdamW for the rest"
    )
    muon_learning_rate: float = setting(0.02, "highest learning rate of Muon's matrices", above=0)
    muon_momentum: float = setting(0.95, "decay rate of Muon's average of gradients", at_least=0, below=1)
    learning_rate: float = setting(6e-4, "highest learning rate", above=0)
    max_iters: int = setting(600_000, "number of optimizer steps of the whole run", at_least=0)
    weight_decay: float = setting(0.1, "decay of the weights, of matrices only", at_least=0)
    beta1: float = setting(0.9, "AdamW's first decay rate", at_least=0, below=1)
    beta2: float = setting(0.95, "AdamW's second decay rate", at_least=0, below=1)
    grad_clip: float = setting(1.0, "largest gradient norm; 0 does not clip", at_least=0)
    decay_lr: bool = setting(True, "warm-up, and decay to min_lr; otherwise constant from the first step")
    schedule: Literal["cosine", "linear"] = setting(
        "cosine",
        "decay by a cosine from the warm-up on, or stay high and fall linearly over the last stretch",
    )
    decay_share: float = setting(
        0.5, "last share of the steps over which a linear schedule falls", above=0, at_most=1
    )
    warmup_iters: int = setting(2000, "steps over which the learning rate rises", at_least=0)
    lr_decay_iters: int | None = setting(None, "step at which min_lr is reached; None: max_iters", at_least=1)
    min_lr: float | None = setting(None, "lowest learning rate; None: a tenth of learning_rate", at_least=0)
    # evaluation, logging, checkpoints
    eval_interval: int = setting(2000, "steps between evaluations; each one saves a checkpoint", at_least=1)
    eval_iters: int | None = setting(200, "batches of an evaluation; None: the whole split", at_least=1)
    eval_only: bool = setting(False, "evaluate once and stop")
    patience: int | None = setting(None, "stop after so many evaluations without a better one", at_least=1)
    log_interval: int = setting(1, "steps between log lines", at_least=1)
    sample_tokens: int = setting(100, "tokens of the sample printed at an evaluation; 0: none", at_least=0)
    keep_checkpoints: int = setting(2, "newest checkpoints kept, beside the best one", at_least=1)
    save_errors: Literal["stop", "continue"] = setting(
        "stop", "when a checkpoint cannot be written, on a full disk say: stop, or try again at the next one"
    )
    loss_spike: float | None = setting(
        None, "stop when a loss exceeds this many times the mean of the 100 before; None: never", above=1
    )
    out_dir: str | None = setting(
        None, "folder of the run; None: out/NAME, named after the configuration file"
    )
    init_from: str = setting(
        "scratch",
        "scratch; resume a checkpoint; auto: resume if there is one; or weights to start from: gpt2, "
        "gpt2-medium, gpt2-large, gpt2-xl, OWNER/NAME@COMMIT on the Hugging Face hub, a folder in its "
        "layout, a ckpt.pt, a run; run:NAME: the newest run of the configuration file NAME.py",
    )
    checkpoint: str = setting(
        "last", "the checkpoint to resume: last, best, or a folder name such as step-00000250"
    )
    log: Literal["wandb", "trackio", "tensorboard"] | None = setting(
        None, "log to another program as well, if its package is installed"
    )
    wandb_log: bool = setting(False, "the same as --log=wandb, nanoGPT's name for it")
    wandb_project: str = setting("plaingpt", "project name there")
    wandb_run_name: str | None = setting(None, "run name there; None: the run folder's name")
    # machine
    seed: int = setting(1337, "seed of the initial weights, the order of the data, and dropout")
    device: str = setting(AUTO, "auto, cpu, cuda, cuda:1, mps or xpu")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = setting(
        AUTO, "precision of the arithmetic"
    )
    compile: bool | Literal["auto"] = setting(AUTO, "torch.compile: auto, True or False")
    threads: int | None = setting(None, "CPU threads of one process; None: the machine's cores", at_least=1)
    parallel: Literal["ddp", "fsdp"] | None = setting(
        None,
        "with several processes, ddp: each holds the whole model; fsdp: each holds a slice of every "
        "parameter, its gradient and its optimizer state, for models that one GPU cannot hold; None: ddp",
    )
    recompute: bool = setting(
        False,
        "keep only the blocks' inputs for the backward pass: less memory, about a third more arithmetic",
    )
    timeout: float = setting(
        1800.0,
        "seconds that processes wait for one another before the run ends; after a third of it they report "
        "where they are",
        above=0,
    )
    deterministic: bool = setting(False, "bit-exact repeats on GPUs too, at some cost in speed")

    def check(self) -> None:
        """Raise UserError for settings that do not fit together."""
        if self.lowest_learning_rate() > self.learning_rate:
            raise UserError(
                f"min_lr {self.min_lr} is above learning_rate {self.learning_rate}; "
                "lower it, or set it to None"
            )
        check_start(self.init_from, STARTS)
        if self.eval_only and self.init_from == "scratch":
            raise UserError("eval_only needs a model to evaluate: add --init_from=resume")

    def sequences_per_step(self) -> int:
        """Sequences of one optimizer step, whatever the number of processes."""
        return self.batch_size * self.gradient_accumulation_steps

    def decay_steps(self) -> int:
        """The step at which the learning rate has reached its lowest value."""
        return self.max_iters if self.lr_decay_iters is None else self.lr_decay_iters

    def lowest_learning_rate(self) -> float:
        """The learning rate at the end of the schedule."""
        return self.learning_rate / 10 if self.min_lr is None else self.min_lr


@dataclass(frozen=True)
class TuneSettings(TrainSettings):
    """Settings of tune.py: its own, and those of train.py except UNUSED."""

    # Settings of train.py without a use here: the shape comes with the weights, and there is no data set.
    UNUSED: ClassVar[tuple[str, ...]] = (
        *ModelSettings.__dataclass_fields__, "dataset", "gradient_accumulation_steps", "documents",
        "eval_iters", "eval_only", "compile", "parallel", "recompute", "loss_spike", "sample_tokens",
    )  # fmt: skip

    dataset: str = setting("tuned", "the name of a run without a configuration file")
    batch_size: int = setting(64, "sequences that are worked on at a time", at_least=1)
    learning_rate: float = setting(1e-4, "highest learning rate", above=0)
    max_iters: int = setting(100, "number of steps of the whole run", at_least=0)
    weight_decay: float = setting(0.0, "decay of the weights, of matrices only", at_least=0)
    warmup_iters: int = setting(5, "steps over which the learning rate rises", at_least=0)
    eval_interval: int = setting(20, "steps between evaluations; each one saves a checkpoint", at_least=1)
    compile: bool | Literal["auto"] = setting(False, "lengths differ from step to step")
    sample_tokens: int = setting(0, "held-out prompts are answered instead", at_least=0)
    init_from: str = setting(
        "run:assistant_chat",
        "the assistant to start from: a run, run:NAME (the newest run of the configuration file NAME.py); "
        "resume a checkpoint; auto: resume if there is one, else start from `reference`",
    )
    # tuning
    method: Literal["dpo", "reward", "ppo", "grpo"] = setting(
        "dpo",
        "dpo: prefer what is chosen; reward: score answers, from preferences too; ppo: answer so that "
        "`reward_model` gives high scores; grpo: answer questions of `tasks` rightly",
    )
    preferences: str | None = setting(
        None,
        "a file of JSON lines with prompt, chosen and rejected; None: pairs of answers that the model itself "
        "gives to questions of `tasks`",
    )
    tasks: str = setting(
        "arithmetic counting reversing", "what questions are drawn from: tasks of tasks/, files.jsonl"
    )
    prompts: int = setting(32, "pairs or questions of a step", at_least=1)
    group: int = setting(8, "grpo, ppo: answers to a question", at_least=2)
    reward_model: str | None = setting(None, "ppo: a run of method=reward, by its folder or as run:NAME")
    clip: float = setting(
        0.2, "ppo: how far a token's probability may move from that it was drawn with", above=0
    )
    epochs: int = setting(2, "ppo: updates from the answers of a step", at_least=1)
    pairs: int = setting(2000, "pairs of answers that are sampled where `preferences` names none", at_least=1)
    temperature: float = setting(1.0, "that these answers are sampled at", at_least=0)
    flipped: float = setting(0.0, "share of the sampled pairs whose labels are wrong", at_least=0, below=1)
    eval_prompts: int = setting(200, "held-out pairs, or questions, of an evaluation", at_least=1)
    max_new_tokens: int = setting(80, "longest answer", at_least=1)
    beta: float = setting(0.1, "dpo, ppo: how closely the model stays to `reference`", above=0)
    reference: str | None = setting(None, "the model to stay close to; None: the one that it starts from")

    def check(self) -> None:
        """Raise UserError for settings that do not fit together."""
        super().check()
        if self.init_from == "scratch" or (self.init_from == "auto" and self.reference is None):
            raise UserError(
                f"init_from is {self.init_from}, and tuning starts from an assistant: "
                f"{'add --reference=RUN' if self.init_from == 'auto' else '--init_from=run:assistant_chat'}"
            )
        if self.method == "ppo" and self.reward_model is None:
            raise UserError(
                "ppo takes the scores of a reward model: add --reward_model=run:assistant_reward_model, made "
                "by python tune.py configs/assistant_reward_model.py"
            )

    def sequences_per_step(self) -> int:
        """Answers of one optimizer step."""
        return self.prompts * (2 if self.method in ("dpo", "reward") else self.group)


@dataclass(frozen=True)
class SampleSettings:
    """Settings of sample.py."""

    init_from: str = setting(
        "resume", "resume: a run of yours; or weights as in train.py: gpt2, a folder, a ckpt.pt, …"
    )
    out_dir: str | None = setting(None, "the run to sample from; None: the newest in out/")
    checkpoint: str = setting("best", "best, last, or a folder name such as step-00000250")
    start: str | None = setting(None, "the prompt, or FILE:prompt.txt; None: a line break")
    num_samples: int = setting(3, "samples to draw", at_least=1)
    max_new_tokens: int = setting(500, "tokens of each sample", at_least=1)
    temperature: float = setting(
        0.8, "below 1: safer text; above: wilder; 0: always the most probable token", at_least=0
    )
    top_k: int | None = setting(200, "draw among the k most probable tokens; None: among all", at_least=1)
    top_p: float | None = setting(
        None, "draw among the most probable tokens that sum to p", above=0, at_most=1
    )
    min_p: float | None = setting(
        None, "draw among tokens this share as probable as the first", above=0, at_most=1
    )
    repetition_penalty: float = setting(
        1.0, "above 1: tokens that the text already contains get less likely", above=0
    )
    stop: str | None = setting(None, "end a sample before this text; \\n stands for a line break")
    stop_at_end: bool = setting(
        True,
        "end a sample at the end-of-text token, if the vocabulary has one; False: go on with the next text",
    )
    interactive: bool = setting(False, "ask for a prompt, answer, and ask again")
    seed: int = setting(1337, "seed of the samples; the same seed gives the same text")
    device: str = setting(AUTO, "auto, cpu, cuda, cuda:1, mps or xpu")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64", "int8"] = setting(
        AUTO,
        "precision; auto: bf16 or fp16 on GPUs; on CPUs float32, and int8 or bf16 for large models that "
        "hardly change by it",
    )
    threads: int | None = setting(None, "CPU threads; None: the machine's cores", at_least=1)

    def check(self) -> None:
        """Raise UserError for settings that do not fit together."""
        check_start(self.init_from, ("resume",))
        if self.init_from != "resume" and self.out_dir is not None:
            raise UserError(
                f"--out_dir names a run and --init_from={self.init_from} other weights; give one of them"
            )


def check_start(init_from: str, ways: Sequence[str]) -> None:
    """Raise UserError for an `init_from` that is neither one of `ways`, nor a GPT-2, nor a path."""
    names = (*ways, *GPT2_SIZES)
    if init_from in names or "@" in init_from or init_from.startswith(NEWEST) or Path(init_from).exists():
        return
    raise UserError(
        f"init_from is {init_from!r}; it can be {', '.join(names)}, OWNER/NAME@COMMIT on the Hugging Face "
        f"hub, {NEWEST}NAME (the newest run NAME), or the path of a folder or a ckpt.pt"
        f"{similar_run(init_from, names)}"
    )


# The headings of `--help`, each before the first setting under it.
SECTIONS = {
    "block_size": "model",
    "dataset": "data",
    "optimizer": "optimizer and schedule",
    "eval_interval": "evaluation, logging, checkpoints",
    "init_from": "which model",
    "method": "tuning",
    "start": "sampling",
    "seed": "machine",
}
# Other words for settings, for suggestions.
ALIASES = {
    "lr": "learning_rate",
    "epochs": "max_iters",
    "steps": "max_iters",
    "max_steps": "max_iters",
    "iterations": "max_iters",
    "layers": "n_layer",
    "heads": "n_head",
    "embd": "n_embd",
    "context": "block_size",
    "context_length": "block_size",
    "bs": "batch_size",
    "wd": "weight_decay",
    "warmup": "warmup_iters",
    "prompt": "start",
    "data": "dataset",
    "grad_accum": "gradient_accumulation_steps",
}
# nanoGPT's settings without a use here: accepted with this remark, so that its files run.
RETIRED = {
    "compile": "sampling runs as it is, one token at a time",
    "always_save_checkpoint": "every evaluation saves; the best and the newest checkpoints are kept",
    "vocab_size": "the vocabulary follows from the data set",
    "backend": "the backend follows from the device: nccl on GPUs, gloo on CPUs",
}
# Every nanoGPT file sets one of these; settings that such a file leaves out have nanoGPT's default.
NANOGPT_MARKS = ("out_dir", "wandb_log", "always_save_checkpoint", "backend")
# Modules that nanoGPT has imported when it runs a configuration file.
NANOGPT_IMPORTS = {"os": "os", "time": "time", "math": "math", "np": "numpy", "torch": "torch"}
# nanoGPT's configuration files, and the arguments that replace them here.
NANOGPT_CONFIGS = {
    "train_shakespeare_char": "configs/shakespeare_char.py",
    "train_gpt2": "configs/gpt2.py",
    "finetune_shakespeare": "configs/finetune_shakespeare.py",
    "eval_gpt2": "--init_from=gpt2 --eval_only=True",
    "eval_gpt2_medium": "--init_from=gpt2-medium --eval_only=True",
    "eval_gpt2_large": "--init_from=gpt2-large --eval_only=True",
    "eval_gpt2_xl": "--init_from=gpt2-xl --eval_only=True",
}
