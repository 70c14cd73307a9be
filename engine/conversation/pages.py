"""The page on which one talks to an assistant; engine/conversation/api.py answers it."""

from pathlib import Path

from engine.conversation.api import Api
from engine.web.page import Page, build_page

FOLDER = Path(__file__).resolve().parent / "page"


def chat_page(api: Api, system: str | None) -> Page:
    """The page, with the instruction that it begins with."""
    temperature = api.defaults.sampling.temperature
    return build_page(FOLDER, ("page.js",), {"name": api.name, "temperature": temperature, "system": system})
