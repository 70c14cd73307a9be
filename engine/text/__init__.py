"""Text to token ids and back; to be read in this order: characters, byte_pairs, tokenizer, tokenizer_files."""
