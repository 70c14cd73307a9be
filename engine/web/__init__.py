"""A page in the browser and the server on this machine that answers it; it knows no page in particular."""
