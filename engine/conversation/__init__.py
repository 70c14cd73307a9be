"""Conversations: messages with roles, as tokens of which some are trained on; answers, a page and an API."""
