"""Conversations: messages with roles, checked, and as tokens of which some are trained on."""
