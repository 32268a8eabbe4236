"""Proposers that use the request's own text, the prefix tree, and earlier outputs of the same grammar."""
