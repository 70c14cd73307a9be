"""Text to token ids and back; in order of reading: characters, byte_pairs, tokenizer, tokenizer_files."""
