"""The parts of tune.py: pairs of answers, answers drawn and judged, and the losses on them."""
