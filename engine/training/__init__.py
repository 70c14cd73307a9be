"""What train.py stands on: from settings to a finished run."""
