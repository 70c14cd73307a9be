"""Talk to an assistant in the terminal.

    python chat.py                                    the newest assistant in out/
    python chat.py out/assistant_chat --system "You have a calculator." --temperature 0
    python chat.py < questions.txt

In the conversation: /system TEXT (a new one with this instruction), /reset (a new one), /retry (another
answer to the last question), /temperature X, /save FILE (as a line that prepare.py reads), /help, /quit.
Ctrl-C stops an answer; Ctrl-D ends the program. Lines of before come back with the arrow keys, where Python
has readline. The calculator answers what the assistant writes between <tool> and </tool>.
"""

import contextlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.command_line import Parser, read_early, run_script
from engine.errors import UserError

HELP = "/system TEXT, /reset, /retry, /temperature X, /save FILE, /help, /quit; Ctrl-C stops an answer"


def read_options(arguments: Sequence[str]) -> Namespace:
    """The command line, checked. Raises UserError."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("model", nargs="?", help="a run of an assistant (default: the newest one in out/)")
    add("--system", help="an instruction that stands before the conversation")
    add("--temperature", type=float, default=0.3, help="0: always the most probable token (default: 0.3)")
    add("--top_k", type=int, help="draw among the k most probable tokens (default: among all)")
    add("--max_new_tokens", type=int, default=100, help="of an answer, at most (default: 100)")
    add("--seed", type=int, default=1337, help="the same seed gives the same answers (default: 1337)")
    add("--checkpoint", default="best", help="which one of the run: best, last, step-… (default: best)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps or xpu (default: auto)")
    add("--threads", type=int, help="CPU threads (default: the machine's cores)")
    options = parser.parse_args(arguments)
    for name in ("top_k", "max_new_tokens", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    return options


# Above the slow imports, so that --help and mistakes are answered at once.
OPTIONS = read_early(read_options) if __name__ == "__main__" else None

from engine import kernels
from engine.conversation.answering import MOST_CALLS, Writing, write_turn
from engine.conversation.messages import Message
from engine.conversation.template import encode_question
from engine.device import Compute, choose_threads, find_device
from engine.generation import Sampling
from engine.json_files import read_json_object
from engine.runs import RUNS_FOLDER, checkpoint_folders, find_runs
from engine.text.roles import ChatTokenizer
from engine.weights.pretrained import read_pretrained
from model import GPT, derive_seed
from tasks.calculator import answer_to


def main(arguments: Sequence[str]) -> None:
    """Talk as a command line says."""
    talk(read_options(arguments))


def talk(options: Namespace) -> None:
    """Load the assistant and converse until the end of the input."""
    source = options.model or newest_assistant()
    found = read_pretrained(str(source), options.checkpoint)
    tokenizer = found.known_tokenizer()
    if not isinstance(tokenizer, ChatTokenizer):
        raise UserError(
            f"{source} is no assistant: its vocabulary has no tokens for the turns of a conversation; tune "
            f"it on conversations first: docs/assistant.md"
        )
    device = find_device(options.device)
    compute = Compute(device.type, "float32", False, choose_threads(options.threads, 1))
    compute.apply()
    model = found.model(device, compute.weights_dtype()).eval()
    kernels.install(model, inference=True)
    print(f"{source}: {HELP}")
    with history():
        Chat(model, tokenizer, options).run()


def newest_assistant() -> Path:
    """The run in out/ that was last saved, of those whose tokenizer has roles. UserError where none is."""
    for run in find_runs():
        tokenizer = read_json_object(checkpoint_folders(run)[0] / "meta.json").get("tokenizer")
        if isinstance(tokenizer, dict) and tokenizer.get("kind") == "chat":
            return run
    raise UserError(
        f"there is no assistant in {RUNS_FOLDER}/; make one: python train.py configs/assistant_base.py, then "
        f"python train.py configs/assistant_chat.py"
    )


class Chat:
    """One conversation, and what the user may do with it."""

    def __init__(self, model: GPT, tokenizer: ChatTokenizer, options: Namespace) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens = min(options.max_new_tokens, model.config.block_size // 2)
        self.top_k, self.seed = options.top_k, options.seed
        self.answers = 0  # drawn so far: each has random numbers of its own
        self.messages: list[Message] = []
        self.set_temperature(str(options.temperature))
        self.begin(options.system)

    def begin(self, system: str | None) -> None:
        """Forget the conversation; the next one stands under this instruction."""
        self.system = system
        self.messages = [] if system is None else [Message("system", system)]

    def run(self) -> None:
        """Read lines and answer them until the end of the input."""
        while True:
            try:
                line = input("you> ").strip()
            except KeyboardInterrupt:
                print("\n(/quit or Ctrl-D ends the program)")
                continue
            except EOFError:
                print()
                return
            if line == "/quit":
                return
            try:
                if line.startswith("/"):
                    self.obey(*line[1:].split(maxsplit=1))
                elif line:
                    self.ask(line)
            except UserError as error:
                print(f"error: {error}")

    def obey(self, command: str = "", value: str = "") -> None:
        """Do what a line that begins with / says. Raises UserError for one that says nothing."""
        match command:
            case "system":
                self.begin(value or None)
                print(f"(a new conversation, {'with this' if value else 'without an'} instruction)")
            case "reset":
                self.begin(self.system)
                print("(a new conversation)")
            case "retry":
                self.retry()
            case "temperature":
                self.set_temperature(value)
            case "save":
                self.save(value)
            case "help":
                print(HELP)
            case _:
                raise UserError(f"/{command} is no command; there are {HELP}")

    def set_temperature(self, value: str) -> None:
        """Draw answers at a temperature from here on. Raises UserError."""
        try:
            self.sampling = Sampling(temperature=float(value), top_k=self.top_k)
        except ValueError as error:
            raise UserError(f"the temperature {value!r} is none: it is a number of 0 or more") from error

    def save(self, path: str) -> None:
        """Append the conversation to a file, as a line that prepare.py reads. Raises UserError."""
        if not path or not any(message.role == "assistant" for message in self.messages):
            raise UserError("/save takes the name of a file, and a conversation with an answer")
        line = json.dumps({"messages": [message._asdict() for message in self.messages]}, ensure_ascii=False)
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        print(f"(added to {path})")

    def retry(self) -> None:
        """Answer the last question once more. Raises UserError where there is none."""
        questions = [number for number, message in enumerate(self.messages) if message.role == "user"]
        if not questions:
            raise UserError("there is no question to answer again")
        asked = questions[-1]
        question = self.messages[asked].content
        del self.messages[asked:]
        self.ask(question)

    def ask(self, question: str) -> None:
        """Answer a question, calling the calculator where the assistant does. Raises UserError."""
        before = list(self.messages)
        self.messages.append(Message("user", question))
        try:
            for _ in range(MOST_CALLS + 1):
                writing = self.answer()
                if not writing.text.strip():  # nothing that a conversation could hold
                    self.messages = before
                    return
                self.messages.append(Message("assistant", writing.text))
                result = answer_to(writing.text) if writing.ended else None
                if result is None:
                    return
                print(f"(calculator: {result})")
                self.messages.append(Message("tool", result))
        except UserError:
            self.messages = before
            raise

    def answer(self) -> Writing:
        """Print the next turn as it is written; Ctrl-C stops it. Raises UserError where nothing fits."""
        room = self.model.config.block_size - self.max_new_tokens
        prompt, left_out = encode_question(self.tokenizer, self.messages, room)
        if len(prompt) > room:
            raise UserError(
                f"the question takes {len(prompt)} tokens, and the model's {self.model.config.block_size} "
                f"leave room for {room} beside an answer; shorten it"
            )
        if left_out:
            first = int(self.messages[0].role == "system")
            del self.messages[first : first + left_out]
            print(f"(the block is full: the oldest {left_out} messages are left out)")
        writing = Writing(self.tokenizer)
        self.answers += 1
        seed = derive_seed(self.seed, "answer", self.answers)
        pieces = write_turn(self.model, writing, prompt, self.max_new_tokens, self.sampling, seed)
        try:
            for piece in pieces:
                print(shown(piece), end="", flush=True)
            print("" if writing.ended else f" (stopped after {self.max_new_tokens} tokens)")
        except KeyboardInterrupt:
            print(" (stopped)")
            writing.finish()
        return writing


def shown(text: str) -> str:
    """A text without control characters, which could do anything to a terminal."""
    return "".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text)


@contextlib.contextmanager
def history() -> Iterator[None]:
    """The lines of earlier conversations at the arrow keys, and these after them, on a terminal."""
    try:
        import readline
    except ImportError:  # not everywhere, and then without
        readline = None
    if readline is None or not sys.stdin.isatty():
        yield
        return
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    path = folder / "plaingpt_chat_history"
    try:
        if path.exists():
            readline.read_history_file(path)
    except OSError as error:
        print(f"note: the lines of before cannot be read from {path}: {error.strerror}")
    try:
        yield
    finally:
        readline.set_history_length(1000)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
        except OSError as error:
            print(f"note: the lines cannot be kept in {path}: {error.strerror}")


if __name__ == "__main__":
    run_script(talk, OPTIONS)
