"""What tune.py stands on: pairs of answers, answers drawn and judged, and the losses on them."""
