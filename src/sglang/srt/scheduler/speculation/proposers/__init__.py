"""Proposers: from the text of the request itself, and from earlier outputs of the same grammar."""
