"""Proposers: from the text of the request itself, from the prefix tree, and from earlier outputs of the same grammar."""
