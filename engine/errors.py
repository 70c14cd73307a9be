"""Errors that a user can cause and fix, and the one place that prints them."""


class UserError(ValueError):
    """Something that the user can put right; its text is one line that names the thing and the fix."""
