"""What several tests use: the real commands, random models, a browser."""
