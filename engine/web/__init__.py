"""Pages in the browser and the server on this machine that answers them; it knows no page in particular."""
