"""A page in the browser and the local server behind it; explore.py's today, and whatever else has a page."""
