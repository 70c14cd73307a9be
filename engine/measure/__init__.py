"""What eval.py and bench.py stand on: how good and how fast."""
