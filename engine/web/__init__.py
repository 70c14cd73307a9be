"""The local web server that pages share."""
