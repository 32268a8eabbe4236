"""Anthropic's API, made of a chat."""
