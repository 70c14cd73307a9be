"""chat.py --web in a real browser: headless Chromium talks, stops, edits, retries and looks inside."""

import json
from collections.abc import Iterator

import pytest
from support.assistants import PAUSE, TOKENIZER, Script, make_assistant, said
from support.browser import Browser, find_chromium, wait_for
from support.serving import serving

import chat
from engine.conversation.answering import AnswerOptions
from engine.conversation.api import Api
from engine.explore.explorer import Explorer
from engine.generation import Sampling

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium or Chrome here; install one, or name it in CHROMIUM"
)
NAME = "<img src=x onerror=alert(1)>"
HI = "<|endoftext|><|user|>Hi<|end|><|assistant|>"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the page is served."""
    assistant = make_assistant(256)
    api = Api(NAME, assistant, AnswerOptions(Sampling(temperature=0.3), 40, seed=1))
    explorer = Explorer(NAME, assistant.model, TOKENIZER)
    with serving(chat.page_server(api, explorer, None, 0)) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(window: Browser, address: str) -> Iterator[Browser]:
    """An empty page. No script error and no breach of the content policy may come up."""
    window.problems.clear()
    window.resize(1280, 900)
    window.open(address)
    window.wait("document.activeElement.id === 'question'")
    yield window
    window.value("1")  # collects what the browser reported last
    assert window.problems == []


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


def ask(browser: Browser, question: str, wait: bool = True) -> None:
    """Type a question, send it, and wait until its answer is complete."""
    browser.type(question)
    browser.press("Enter")
    if wait:
        complete(browser)


def complete(browser: Browser) -> None:
    browser.wait("document.getElementById('talk').getAttribute('aria-busy') === 'false'")


def turns(browser: Browser) -> list[list[str]]:
    """Who said what, notes included."""
    return browser.value(
        "[...document.querySelectorAll('.turn')].map(turn =>"
        " [...turn.querySelectorAll('h3, p')].map(part => part.textContent))"
    )


def status(browser: Browser) -> str:
    return browser.value("document.getElementById('status').textContent")


def press(browser: Browser, name: str, turn: int) -> None:
    """Press a button under a turn, counted from 1."""
    browser.click(f".turn:nth-child({turn}) [aria-label^='{name}']")


def test_a_conversation_is_kept(browser: Browser, script: Script) -> None:
    script.turns = [said("Hello"), said("Well,\nfine")]
    ask(browser, "Hi")
    assert status(browser) == "Answered."
    ask(browser, "How?")
    assert turns(browser) == [
        ["You", "Hi"],
        ["Assistant", "Hello"],
        ["You", "How?"],
        ["Assistant", "Well,\nfine"],
    ]
    assert script.prompts == [HI, f"{HI}Hello<|end|><|user|>How?<|end|><|assistant|>"]
    assert browser.value("document.activeElement.id") == "question"


def test_the_answer_shows_while_it_is_written_and_can_be_stopped(browser: Browser, script: Script) -> None:
    script.turns = [[*b"Hel", PAUSE], [*b"Wel", PAUSE], said("So")]
    ask(browser, "Hi", wait=False)
    wait_for(lambda: turns(browser)[-1] == ["Assistant", "Hel"], "the beginning of the answer")
    assert browser.value("document.getElementById('talk').getAttribute('aria-busy')") == "true"
    browser.click("#stop")
    complete(browser)
    ask(browser, "How?", wait=False)
    script.go_on.set()  # the first answer's writer finds that nobody reads
    wait_for(lambda: turns(browser)[-1][1].startswith("Wel"), "the next answer")
    browser.press("Escape")
    complete(browser)
    found = turns(browser)
    assert found[1] == ["Assistant", "Hel", "(stopped)"] and found[3][1].startswith("Wel")
    ask(browser, "And?")
    assert script.prompts[1].startswith(f"{HI}Hel<|end|><|user|>How?")


def test_an_answer_without_an_end_is_cut_and_that_is_said(browser: Browser, script: Script) -> None:
    script.turns = [[]]
    ask(browser, "Hi")
    assert turns(browser)[1] == ["Assistant", "!" * 40, "(stopped: it may not be longer)"]


def test_a_question_is_edited_and_what_follows_goes(browser: Browser, script: Script) -> None:
    script.turns = [said("Hello"), said("Well"), said("Aha")]
    ask(browser, "Hi")
    ask(browser, "How?")
    press(browser, "Edit", 1)
    assert browser.value("[document.activeElement.id, document.activeElement.value]") == ["question", "Hi"]
    browser.press("Escape")  # leaves it
    assert browser.value("document.getElementById('question').value") == "" and len(turns(browser)) == 4
    press(browser, "Edit", 1)
    ask(browser, " there")
    assert turns(browser) == [["You", "Hi there"], ["Assistant", "Aha"]]
    assert script.prompts[2] == HI.replace("Hi", "Hi there")


def test_an_answer_is_tried_again(browser: Browser, script: Script) -> None:
    script.turns = [said("<tool>1+1</tool>"), said("2"), said("Well"), said("Fine")]
    ask(browser, "Hi")
    ask(browser, "How?")
    press(browser, "Retry", 4)  # the first answer, after the calculator
    wait_for(lambda: turns(browser) == [["You", "Hi"], ["Assistant", "Fine"]], "the new answer")
    assert script.prompts[3] == HI and browser.value("document.activeElement.id") == "question"


def test_calls_of_the_calculator_are_shown_and_kept(browser: Browser, script: Script) -> None:
    script.turns = [said("<tool>12*34</tool>"), said("408"), said("Well")]
    ask(browser, "Hi")
    ask(browser, "How?")
    assert turns(browser)[1:4] == [
        ["Assistant", "<tool>12*34</tool>"],
        ["Calculator", "408"],
        ["Assistant", "408"],
    ]
    kept = "<tool>12*34</tool><|end|><|tool|>408<|end|><|assistant|>408<|end|><|user|>How?"
    assert script.prompts[2].startswith(f"{HI}{kept}")


def test_temperature_and_system_prompt_are_the_pages(browser: Browser, script: Script) -> None:
    script.turns = [said("Hello"), said("Brief"), said("So")]
    ask(browser, "Hi")
    browser.value(
        "(s => { s.value = 1.5; s.dispatchEvent(new Event('input')); })"
        "(document.getElementById('temperature'))"
    )
    assert browser.value("document.getElementById('temperature-value').textContent") == "1.50"
    browser.value("document.getElementById('system').focus()")
    browser.type("Be brief.")
    browser.click("#new")
    assert turns(browser) == [] and browser.value("document.activeElement.id") == "question"
    ask(browser, "Hi")
    assert [sampling.temperature for sampling in script.samplings] == [0.3, 1.5]
    assert script.prompts[1] == HI.replace("<|user|>", "<|system|>Be brief.<|end|><|user|>")


def test_what_there_is_no_room_for_is_shown_as_left_out(browser: Browser, script: Script) -> None:
    script.turns = [said("a" * 30)] * 6
    for number in range(6):
        ask(browser, f"{number}" * 30)
    gone = browser.value("document.querySelectorAll('.turn.gone').length")
    assert gone >= 2 and "0" * 30 not in script.prompts[5] and "5" * 30 in script.prompts[5]
    notes = [turn for turn in turns(browser) if "The block is full: what stands above is left out." in turn]
    assert notes and turns(browser)[gone - 1] == notes[-1]
    script.turns = [said("b")]
    press(browser, "Edit", 1)
    ask(browser, "")
    assert browser.value("document.querySelectorAll('.turn.gone').length") == 0


def test_a_question_that_cannot_be_answered_comes_back(browser: Browser, script: Script) -> None:
    ask(browser, "x" * 300)
    assert "the question takes 304 tokens" in status(browser)
    assert browser.value("document.getElementById('status').className") == "error"
    assert browser.value("document.getElementById('question').value") == "x" * 300 and turns(browser) == []
    script.turns = [[TOKENIZER.end_of_turn]]
    browser.value("document.getElementById('question').value = ''")
    ask(browser, "Hi")
    assert status(browser) == "There was no answer." and turns(browser) == []


def test_look_inside_opens_the_explorer_on_what_the_model_saw(browser: Browser, script: Script) -> None:
    script.turns = [said("Hello"), said("Well")]
    ask(browser, "Hi")
    ask(browser, "<|end|>")
    link = "document.querySelector('.turn:last-child a')"
    assert (
        browser.value(f"{link}.target") == "_blank" and browser.value(f"{link}.textContent") == "Look inside"
    )
    browser.open(browser.value(f"{link}.href"))
    browser.wait("document.querySelectorAll('#layers tr').length > 0")
    prompt = "<|endoftext|>|<|user|>|H|i|<|end|>|<|assistant|>|H|e|l|l|o|<|end|>|<|user|>|"
    shown = browser.value(
        "[...document.querySelectorAll('.token')].map(token => token.textContent).join('|')"
    )
    assert shown == prompt + "<|||e|n|d|||>|" + "<|end|>|<|assistant|>"


def test_markup_stays_text(browser: Browser, script: Script) -> None:
    script.turns = [said("<img src=i onerror=i>")]
    ask(browser, "<b>bold</b>")
    assert turns(browser) == [["You", "<b>bold</b>"], ["Assistant", "<img src=i onerror=i>"]]
    assert browser.value("document.querySelectorAll('img, b').length") == 0
    assert NAME in browser.value("document.title")


def test_a_screen_reader_finds_names_and_hears_whole_answers(browser: Browser, script: Script) -> None:
    script.turns = [said("Hello")]
    ask(browser, "Hi")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "slider", "textbox", "link", "article", "log", "status")
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node.get("ignored") and node.get("role", {}).get("value") in roles
    ]
    assert {name for role, name in named if role == "textbox"} == {"Message", "System prompt"}
    assert {"Send", "Stop", "New conversation", "Edit: Hi", "Retry: Hello"} <= {name for _, name in named}
    assert ("slider", "Temperature") in named and ("log", "Conversation") in named
    assert all(name for role, name in named if role != "status")
    live = browser.value(
        "['aria-live', 'aria-busy'].map(n => document.getElementById('talk').getAttribute(n))"
    )
    assert live == ["polite", "false"]


def test_everything_is_reached_by_keyboard(browser: Browser, script: Script) -> None:
    script.turns = [said("Hello")]
    ask(browser, "Hi")
    order = browser.value(
        "[...document.querySelectorAll('button, a, textarea, input')].filter(e => !e.disabled)"
        ".map(e => [e.textContent || e.id, e.tabIndex])"
    )
    assert [name for name, _ in order] == [
        *("Edit", "Retry", "Look inside", "question", "Send"),
        *("temperature", "system", "New conversation"),
    ]
    assert all(index == 0 for _, index in order)
    browser.value("document.querySelector('.turn button').focus()")
    outline = browser.value("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_it_fits_on_a_phone_and_goes_dark(browser: Browser, script: Script) -> None:
    script.turns = [said("a\n" * 19)] * 2
    browser.resize(360, 740, phone=True)
    for question in ("x" * 40, "y" * 40):
        ask(browser, question)
        form = browser.value("document.getElementById('question-form').getBoundingClientRect().bottom")
        assert form <= 741 < browser.value("document.documentElement.scrollHeight")  # typing goes on in sight
    light = browser.value("getComputedStyle(document.querySelector('section')).backgroundColor")
    browser.dark(True)
    browser.wait(
        f"getComputedStyle(document.querySelector('section')).backgroundColor !== {json.dumps(light)}"
    )
    assert browser.value("document.documentElement.scrollWidth") == 360
    sides = browser.value("[...document.querySelectorAll('section')].map(s => s.getBoundingClientRect().x)")
    assert sides[0] == sides[1]
    browser.dark(False)


def test_a_program_that_has_ended_is_told(browser: Browser) -> None:
    browser.value("(window.fetch = () => Promise.reject(new TypeError()), 0)")
    ask(browser, "Hi")
    assert status(browser) == "The program does not answer; is it still running?"
    assert browser.value("document.getElementById('question').value") == "Hi" and turns(browser) == []
    part = 'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\n'
    browser.value(f"(window.fetch = async () => new Response({json.dumps(part)}), 0)")
    browser.press("Enter")
    complete(browser)
    assert status(browser) == "The answer broke off; is the program still running?"
    assert turns(browser)[1] == ["Assistant", "Hel", "(stopped)"]


def test_the_page_begins_with_the_command_lines_instruction(window: Browser) -> None:
    assistant = make_assistant()
    api = Api("talk", assistant, AnswerOptions(Sampling(temperature=2.5), 40, seed=1))
    explorer = Explorer("talk", assistant.model, TOKENIZER)
    with serving(chat.page_server(api, explorer, "Be brief.", 0)) as port:
        window.open(f"http://127.0.0.1:{port}/")
        values = window.value("['system', 'temperature'].map(id => document.getElementById(id).value)")
    assert values == ["Be brief.", "2.5"]
