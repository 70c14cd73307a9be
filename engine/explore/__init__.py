"""What explore.py stands on: the inside of a model, answers to a page's questions about it, and the page."""
