"""GPT-2's vocabulary, where it is on this machine."""

import pytest

from engine.text.gpt2_vocabulary import _cache_folders, _is_intact

needs_gpt2_vocabulary = pytest.mark.skipif(
    not any(_is_intact(folder) for folder in _cache_folders()),
    reason="GPT-2's vocabulary is not on this machine: python prepare.py shakespeare",
)
