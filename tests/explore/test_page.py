"""The explorer's page in a real browser: headless Chromium types, moves sliders, opens heads."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from support.browser import Browser, find_chromium, wait_for
from support.explorers import CHARACTERS, GatedMLP, NoAttention, make_explorer
from support.serving import serving

from engine import shape
from engine.explore.explorer import Explorer
from engine.explore.pages import explorer_server, page_with_answers
from engine.generation import Sampling
from engine.text.characters import ByteTokenizer, CharTokenizer
from model import GPT, GPTConfig

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium or Chrome here; install one, or name it in CHROMIUM"
)
PROMPT = "ROMEO:\nShall I hear?"
READY = (
    "document.querySelectorAll('#near li').length > 0 && document.querySelectorAll('#layers tr').length > 0"
)


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return make_explorer()


@pytest.fixture(scope="module")
def address(explorer: Explorer) -> Iterator[str]:
    """Where the explorer is served."""
    with serving(explorer_server(explorer, 0)) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(window: Browser, address: str) -> Iterator[Browser]:
    """The page with PROMPT read. No script error and no breach of the content policy may come up."""
    window.problems.clear()
    window.resize(1280, 900)
    window.open(address + "#" + quote(PROMPT))
    window.wait(READY)
    yield window
    window.value("1")  # collects what the browser reported last
    assert window.problems == []


def open_file(browser: Browser, folder: Path, explorer: Explorer, prompt: str) -> None:
    """Write the page as a file about a prompt, and open it."""
    (folder / "page.html").write_text(page_with_answers(explorer, prompt), encoding="utf-8")
    browser.open((folder / "page.html").as_uri())
    browser.wait(READY)


def tokens(browser: Browser) -> str:
    """The text in the boxes, its signs for spaces and line breaks undone."""
    text = browser.value("[...document.querySelectorAll('.token')].map(b => b.textContent).join('')")
    return text.replace("·", " ").replace("↵", "\n")


def bars(browser: Browser) -> dict[int, float]:
    """Token numbers with the probabilities that the bars stand for."""
    pairs = browser.value(
        "[...document.querySelectorAll('#bars button')].map(b => [b.dataset.id, b.dataset.probability])"
    )
    return {int(index): float(value) for index, value in pairs}


def move(browser: Browser, slider: str, value: float) -> None:
    """Set a slider as a person's drag does: its value, then the event."""
    browser.value(
        f"(s => {{ s.value = {value}; s.dispatchEvent(new Event('input')); }})"
        f"(document.getElementById('{slider}'))"
    )


def expected(explorer: Explorer, text: str, *sampling: float | None) -> torch.Tensor:
    """sample.py's distribution after a text."""
    ids = torch.from_numpy(explorer.tokenizer.encode(text))[None]
    with torch.no_grad():
        return Sampling(*sampling).probabilities(explorer.model(ids)[:, -1])[0]


def test_a_typed_prompt_is_read(browser: Browser) -> None:
    browser.click("#prompt")
    browser.value("document.getElementById('prompt').select()")
    browser.type("What news <b>?")
    browser.press("Enter")
    wait_for(lambda: tokens(browser) == "What news <b>?", "the new tokens")
    assert browser.value("document.querySelectorAll('#tokens b').length") == 0
    assert "14 tokens, of at most 32" in browser.value("document.getElementById('status').textContent")


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, 1.0), (0.5, None, 1.0), (2.0, 5, 1.0), (1.0, None, 0.6), (0.8, 20, 0.9)],
)
def test_the_bars_are_sample_pys_probabilities(
    browser: Browser, explorer: Explorer, temperature, top_k, top_p
) -> None:
    move(browser, "temperature", temperature)
    move(browser, "top-p", top_p)
    if top_k is not None:
        move(browser, "top-k", top_k)
    wanted = expected(explorer, PROMPT, temperature, top_k, top_p)
    shown = bars(browser)
    assert len(shown) == 15
    for index, probability in shown.items():
        assert probability == pytest.approx(wanted[index].item(), abs=1e-5)
    assert sum(shown.values()) == pytest.approx(wanted.topk(15).values.sum().item(), abs=1e-4)
    width = browser.value("document.querySelector('#bars .track span').style.width")
    assert float(width.rstrip("%")) / 100 == pytest.approx(max(shown.values()), abs=1e-3)


def test_temperature_zero_leaves_one_bar(browser: Browser) -> None:
    move(browser, "temperature", 0)
    assert sorted(bars(browser).values())[-2:] == [0, 1]


def test_a_token_is_taken_and_given_back(browser: Browser, explorer: Explorer) -> None:
    taken = list(bars(browser))[2]
    browser.click("#bars li:nth-child(3) button")
    longer = PROMPT + explorer.tokenizer.decode([taken])
    wait_for(lambda: tokens(browser) == longer, "the token that was taken")
    wanted = expected(explorer, longer, 1.0, None, None)
    assert max(bars(browser).values()) == pytest.approx(wanted.max().item(), abs=1e-5)
    browser.click("#back")
    wait_for(lambda: tokens(browser) == PROMPT, "the text as it was")


def test_it_writes_by_itself_until_stopped(browser: Browser) -> None:
    browser.click("#run")
    browser.wait("document.getElementById('status').textContent.includes('out of its sight')")
    browser.click("#run")
    browser.wait("document.querySelector('#run').textContent === 'Run'")
    browser.wait(
        "document.getElementById('readout').textContent"
        ".startsWith(document.querySelectorAll('.token').length - 1)"
    )
    assert len(tokens(browser)) <= 32


def test_a_head_is_opened_and_its_numbers_are_the_models(browser: Browser, explorer: Explorer) -> None:
    from engine.explore.inspection import inspect

    browser.click("#heads button[data-layer='1'][data-head='1']")
    browser.wait(
        "document.getElementById('layer').value === '1' && document.getElementById('head').value === '1'"
    )
    rows = browser.value(
        "[...document.querySelectorAll('#weights tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    attention = inspect(explorer.model, torch.from_numpy(explorer.tokenizer.encode(PROMPT))).attention[
        1, 1, -1
    ]
    assert len(rows) == 12
    for position, _, weight in rows:
        assert float(weight) == pytest.approx(attention[int(position)].item(), abs=1e-4)
    assert browser.value("document.getElementById('map').width") == len(PROMPT)
    # Pixels ahead of the diagonal are all the colour of nothing.
    ahead = """(c => { const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data,
              seen = new Set();
        for (let i = 0; i < c.width; i++)
            for (let j = i + 1; j < c.width; j++) seen.add(p[4 * (i * c.width + j)]);
        return seen.size; })(document.getElementById('map'))"""
    assert browser.value(ahead) == 1


def test_lines_follow_the_pointer(browser: Browser) -> None:
    browser.point(".token[data-position='0']")
    browser.wait("document.querySelectorAll('#lines path').length === 1")  # the first token sees itself alone
    browser.point(".token[data-position='15']")
    browser.wait("document.querySelectorAll('#lines path').length > 1")


def test_it_can_be_used_by_keyboard(browser: Browser) -> None:
    browser.value("document.querySelector('.token[tabindex=\"0\"]').focus()")
    browser.press("Home")
    browser.press("ArrowRight", times=3)
    assert browser.value("document.activeElement.dataset.position") == "3"
    browser.wait("document.querySelector('span.chosen').textContent === 'E'")
    browser.value("document.querySelector('#heads [tabindex=\"0\"]').focus()")
    browser.press("ArrowDown")
    assert browser.value(
        "[document.activeElement.dataset.layer, document.getElementById('layer').value]"
    ) == ["1", "1"]
    browser.value("document.getElementById('map').focus()")
    browser.press("ArrowUp")
    assert browser.value("document.getElementById('readout').textContent").startswith("2 M takes")


def test_a_screen_reader_finds_a_name_for_everything(browser: Browser) -> None:
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    interactive = {"button", "slider", "textbox", "combobox", "toolbar", "image"}
    named = [
        node.get("name", {}).get("value", "")
        for node in nodes
        if not node.get("ignored") and node.get("role", {}).get("value") in interactive
    ]
    assert len(named) > 40 and all(named)
    assert {"Temperature", "Top-k", "Top-p", "Prompt", "Layer", "Head"} <= set(named)
    assert any("surprise" in name for name in named) and any("looks back" in name for name in named)


def test_every_tokens_surprise_is_in_sight_and_the_chosen_one_stands_out(browser: Browser) -> None:
    for width in (1280, 420):
        browser.resize(width, 900)
        frame, first, last = browser.value(
            "['.scroll', '#surprise rect', '#surprise rect:last-child'].map(selector =>"
            " (box => [box.left, box.right])(document.querySelector(selector).getBoundingClientRect()))"
        )
        assert frame[0] <= first[0] < last[0] < last[1] <= frame[1]
    browser.click(".token[data-position='12']")
    colours = browser.value(
        "[...document.querySelectorAll('#surprise rect')].map(rect => getComputedStyle(rect).fill)"
    )
    assert len(colours) == len(PROMPT) and [colours.count(colour) for colour in colours].index(1) == 12


def test_it_fits_on_a_phone_and_goes_dark(browser: Browser) -> None:
    light = browser.value("getComputedStyle(document.querySelector('section')).backgroundColor")
    browser.resize(360, 740, phone=True)
    browser.dark(True)
    browser.wait(
        f"getComputedStyle(document.querySelector('section')).backgroundColor !== {json.dumps(light)}"
    )
    assert browser.value("document.documentElement.scrollWidth") == 360
    browser.dark(False)


def test_parameters_add_up_and_unknown_ones_are_called_other(
    window: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.MLP", GatedMLP)
    shape.count_parameters.cache_clear()  # of what the code was before
    explorer = make_explorer(bias=False)
    open_file(window, tmp_path, explorer, PROMPT)
    rows = window.value(
        "[...document.querySelectorAll('#count tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    counts = {name: int(count.replace(",", "")) for name, count, _ in rows}
    assert counts["other"] == 512 and "biases" not in counts and counts["unembedding"] == 0
    assert counts.pop("all") == sum(counts.values())
    assert sum(counts.values()) == sum(parameter.numel() for parameter in explorer.model.parameters())
    shape.count_parameters.cache_clear()


def test_a_prompt_that_no_text_can_spell_comes_as_ids(window: Browser, address: str) -> None:
    window.problems.clear()
    window.open(address + "#ids:3,0,5")
    window.wait(READY)
    assert window.value("document.querySelectorAll('.token').length") == 3
    assert tokens(window) == "".join(sorted(CHARACTERS)[index] for index in (3, 0, 5))
    assert window.value("document.getElementById('prompt').value") == "" and window.problems == []


def test_errors_are_sentences_on_the_page(browser: Browser) -> None:
    browser.click("#prompt")
    browser.type("漢")
    browser.press("Enter")
    browser.wait("document.getElementById('status').className === 'error'")
    assert "is not among the" in browser.value("document.getElementById('status').textContent")
    assert tokens(browser) == PROMPT


def test_markup_that_the_model_writes_stays_text(window: Browser, tmp_path: Path) -> None:
    """A tokenizer whose every token is a sign of HTML, and the page as a file."""
    tokenizer = CharTokenizer.of_text('<>/="&;!-img src onerror script')
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=1, n_head=1, n_embd=8))
    model.init_weights(seed=1)
    explorer = Explorer("<img src=x onerror=alert(1)>", model.eval(), tokenizer)
    window.problems.clear()
    open_file(window, tmp_path, explorer, "</script><img src=i onerror=i>")
    assert window.value("document.querySelectorAll('img').length") == 0
    assert tokens(window) == "</script><img src=i onerror=i>"
    move(window, "temperature", 2)  # the sliders of a file work without a server
    assert sum(bars(window).values()) == pytest.approx(
        expected(explorer, "</script><img src=i onerror=i>", 2.0, None, None).topk(15).values.sum().item(),
        abs=1e-4,
    )
    assert window.problems == []


def test_a_model_without_attention_is_shown_without_heads(window: Browser, tmp_path: Path) -> None:
    explorer = make_explorer()
    for block in explorer.model.blocks:
        block.attention = NoAttention()
    window.problems.clear()
    open_file(window, tmp_path, Explorer("no attention", explorer.model, explorer.tokenizer), PROMPT)
    visible = window.value(
        "[...document.querySelectorAll('section')].filter(section => section.offsetHeight)"
        ".map(section => section.querySelector('h2').textContent)"
    )
    assert visible == [
        "Text",
        "Next token",
        "Loss and surprise",
        "Layer by layer",
        "Neighbours",
        "Parameters",
    ]
    assert window.value("document.title") == "no attention – plainGPT explorer"
    window.point(".token[data-position='5']")
    window.click(".token[data-position='9']")
    window.wait("document.querySelector('span.chosen').textContent === 'a'")
    assert window.problems == []


def test_a_large_vocabulary_starts_uncut(window: Browser, tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    model = GPT(GPTConfig(vocab_size=320, block_size=16, n_layer=1, n_head=1, n_embd=8))
    model.init_weights(seed=1)
    explorer = Explorer("bytes", model.eval(), tokenizer)
    open_file(window, tmp_path, explorer, "naïve 漢")
    assert window.value("document.getElementById('top-k-value').textContent") == "all"
    assert "256 of 256 tokens" in window.value("document.getElementById('kept').textContent")
    move(window, "top-k", 200)
    assert "200 of 256 tokens" in window.value("document.getElementById('kept').textContent")


def test_two_hundred_tokens_of_gpt2s_shape_stay_fluid(window: Browser, tmp_path: Path) -> None:
    """12 layers × 12 heads: a pointer, a slider or a chosen head costs one picture at most."""
    explorer = make_explorer(n_layer=12, n_head=12, n_embd=24, block_size=256)
    open_file(window, tmp_path, explorer, "to be or " * 22 + "be")
    assert window.value("document.querySelectorAll('#heads canvas[width=\"200\"]').length") == 144
    window.value("""(() => { const original = CanvasRenderingContext2D.prototype.putImageData;
        window.painted = 0;
        CanvasRenderingContext2D.prototype.putImageData = function (...rest) {
            window.painted++; return original.apply(this, rest); }; })()""")
    move(window, "temperature", 1.5)
    window.point(".token[data-position='150']")
    window.wait("document.querySelectorAll('#lines path').length > 1")
    assert window.value("window.painted") == 0
    window.click("#heads button[data-layer='11'][data-head='7']")
    window.wait(
        "document.getElementById('layer').value === '11' && document.getElementById('head').value === '7'"
    )
    assert window.value("window.painted") == 1
