"""The code behind train.py: from settings to a finished run."""
