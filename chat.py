"""Talk to an assistant in the terminal or in the browser, or let programs talk to it.

    python chat.py                                    the newest assistant in out/
    python chat.py out/assistant_chat --system "You have a calculator." --temperature 0
    python chat.py < questions.txt
    python chat.py --web                              a page, on this machine only
    python chat.py --api                              a server for programs that talk OpenAI's API

In the conversation: /system TEXT (a new one with this instruction), /reset (a new one), /retry (another
answer to the last question), /temperature X, /save FILE (as a line that prepare.py reads), /help, /quit.
Ctrl-C stops an answer; Ctrl-D ends the program. The arrow keys bring back earlier lines, if Python has
readline. The calculator answers what the assistant writes between <tool> and </tool>.
"""

import contextlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from http.server import HTTPServer
from pathlib import Path
from typing import Any

from engine.command_line import Parser, at_least_one, read_early, run_script
from engine.errors import UserError

HELP = "/system TEXT, /reset, /retry, /temperature X, /save FILE, /help, /quit; Ctrl-C stops an answer"


def read_options(arguments: Sequence[str]) -> Namespace:
    """The command line, checked. Raises UserError."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("model", nargs="?", help="a run of an assistant (default: the newest one in out/)")
    add("--system", help="an instruction at the beginning of the conversation")
    add("--temperature", type=float, default=0.3, help="0: always the most probable token (default: 0.3)")
    add("--top_k", type=at_least_one, help="draw among the k most probable tokens (default: among all)")
    add("--max_new_tokens", type=at_least_one, default=100, help="of an answer, at most (default: 100)")
    add("--seed", type=int, default=1337, help="the same seed gives the same answers (default: 1337)")
    add("--checkpoint", default="best", help="which one of the run: best, last, step-… (default: best)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps or xpu (default: auto)")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "int8"),
        default="auto",
        help="precision; auto chooses as sample.py does (default: auto)",
    )
    add("--threads", type=at_least_one, help="CPU threads (default: the machine's cores)")
    add("--web", action="store_true", help="serve a page to talk on, and the API")
    add("--api", action="store_true", help="serve OpenAI's chat API, on this machine only")
    add("--port", type=int, default=0, help="port of the server (default: any that is free)")
    add("--no-open", action="store_true", help="print the page's address without opening a browser")
    options = parser.parse_args(arguments)
    if options.api and not options.web and options.system is not None:
        raise UserError("--system is for people; a request to --api brings its own system message")
    return options


# Above the slow imports, so that --help and mistakes are answered at once.
OPTIONS = read_early(read_options) if __name__ == "__main__" else None

from engine.conversation.answering import AnswerOptions, Assistant, Turn
from engine.conversation.api import Api
from engine.conversation.messages import Message
from engine.conversation.pages import chat_page
from engine.explore.explorer import Explorer
from engine.explore.pages import explorer_page, open_explorer, short_name
from engine.generation import Sampling
from engine.json_files import read_json_object
from engine.runs import RUNS_FOLDER, checkpoint_folders, find_runs
from engine.text.tokenizer import print_note
from engine.web.server import Answers, make_server, serve
from engine.weights.precision import ready_to_generate
from engine.weights.pretrained import read_pretrained
from model import derive_seed
from tasks.calculator import answer_to


def main(arguments: Sequence[str]) -> None:
    """Talk to an assistant with the options of a command line."""
    talk(read_options(arguments))


def talk(options: Namespace) -> None:
    """Load the assistant; talk until the end of the input, or serve it."""
    source = str(options.model or newest_assistant())
    assistant = load(source, options)
    if options.web or options.api:
        serve_assistant(source, assistant, options)
    else:
        print(f"{source}: {HELP}")
        with history():
            Chat(assistant, options).run()


def load(source: str, options: Namespace) -> Assistant:
    """The assistant of a run or a folder, ready to answer. Raises UserError if it is not an assistant."""
    found = read_pretrained(source, options.checkpoint)
    tokenizer = found.chat_tokenizer()
    model, remark = ready_to_generate(found, options.device, options.dtype, options.threads)
    if remark:
        print_note(remark)
    return Assistant(model, tokenizer, answer_to)


def serve_assistant(source: str, assistant: Assistant, options: Namespace) -> None:
    """Serve the API, and the page with --web, until Ctrl-C."""
    name = short_name(source)
    defaults = AnswerOptions(sampling(options.temperature, options), options.max_new_tokens, options.seed)
    api = Api(name, assistant, defaults)
    if not options.web:
        server = make_server({}, api.answer, options.port, programs=True)
        return serve(server, f"the API of {name}", "v1", open_browser=False)
    explorer = open_explorer(source, options.checkpoint, options.device)
    serve(page_server(api, explorer, options.system, options.port), name, "", not options.no_open)


def page_server(api: Api, explorer: Explorer, system: str | None, port: int) -> HTTPServer:
    """A server of the chat page and the explorer's page. Raises UserError."""

    def answer(path: str, question: Any) -> dict[str, Any] | Answers:
        return (explorer if path in explorer.answers else api).answer(path, question)

    pages = {"/": chat_page(api, system), "/explore": explorer_page(explorer)}
    return make_server(pages, answer, port, programs=True)


def sampling(temperature: str | float, options: Namespace) -> Sampling:
    """The sampling options at a temperature. Raises UserError."""
    try:
        return Sampling(temperature=float(temperature), top_k=options.top_k)
    except ValueError as error:
        raise UserError(f"the temperature {temperature!r} is none: it is a number of 0 or more") from error


def newest_assistant() -> Path:
    """The assistant in out/ that was saved last. Raises UserError if there is none."""
    for run in find_runs():
        if answers(read_json_object(checkpoint_folders(run)[0] / "meta.json")):
            return run
    raise UserError(
        f"there is no assistant in {RUNS_FOLDER}/; make one: python train.py configs/assistant_base.py, then "
        f"python train.py configs/assistant_chat.py"
    )


def answers(meta: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's model writes answers: it knows roles, and is not a reward model."""
    tokenizer, settings = meta.get("tokenizer"), meta.get("settings")
    has_roles = isinstance(tokenizer, dict) and tokenizer.get("kind") == "chat"
    return has_roles and not (isinstance(settings, dict) and settings.get("method") == "reward")


class Chat:
    """One conversation, and the commands of the user."""

    def __init__(self, assistant: Assistant, options: Namespace) -> None:
        self.assistant, self.options = assistant, options
        self.sampling = sampling(options.temperature, options)
        self.asked = 0  # questions so far: each answer has its own random numbers
        self.messages: list[Message] = []
        self.begin(options.system)

    def begin(self, system: str | None) -> None:
        """Start a new conversation with this instruction."""
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
        """Execute a line that begins with /. Raises UserError for an unknown command."""
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
                self.sampling = sampling(value, self.options)
            case "save":
                self.save(value)
            case "help":
                print(HELP)
            case _:
                raise UserError(f"/{command} is no command; there are {HELP}")

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
        """Answer the last question again. Raises UserError if there is none."""
        questions = [number for number, message in enumerate(self.messages) if message.role == "user"]
        if not questions:
            raise UserError("there is no question to answer again")
        asked = questions[-1]
        question = self.messages[asked].content
        del self.messages[asked:]
        self.ask(question)

    def ask(self, question: str) -> None:
        """Answer a question, with the calculator if the assistant calls it. Raises UserError."""
        before = list(self.messages)
        self.messages.append(Message("user", question))
        self.asked += 1
        seed = derive_seed(self.options.seed, "answer", self.asked)
        options = AnswerOptions(self.sampling, self.options.max_new_tokens, seed)
        try:
            for turn in self.assistant.turns(self.messages, options):
                self.show(turn)
        except UserError:
            self.messages = before
            raise
        if not self.messages[-1].content.strip():  # an empty answer cannot stay in a conversation
            print("(the answer is empty, so the question is not kept)")
            self.messages = before

    def show(self, turn: Turn) -> None:
        """Print a turn as it is written, and before it the calculator's result; Ctrl-C stops it."""
        if self.messages[-1].role == "tool":
            print(f"(calculator: {self.messages[-1].content})")
        if turn.left_out:
            print(f"(the block is full: the oldest {turn.left_out} messages are left out)")
        try:
            for piece in turn:
                print(shown(piece), end="", flush=True)
            print("" if turn.ended else f" (stopped after {turn.limit} tokens)")
        except KeyboardInterrupt:
            print(" (stopped)")
            turn.finish()


def shown(text: str) -> str:
    """The text without control characters, which could change the terminal."""
    return "".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text)


@contextlib.contextmanager
def history() -> Iterator[None]:
    """On a terminal, make the arrow keys bring back the lines of earlier conversations; keep the new ones."""
    try:
        import readline
    except ImportError:  # Windows has none
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
