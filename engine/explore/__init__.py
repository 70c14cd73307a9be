"""What explore.py stands on: the inside of a model, and its page."""
