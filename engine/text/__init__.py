"""Text to ids and back: characters, bytes, byte pairs of GPT-2 or your own, and the files they live in."""
