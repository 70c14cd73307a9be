"""What prepare.py stands on: from any text to token files."""
