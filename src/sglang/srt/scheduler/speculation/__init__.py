"""Speculation: proposers draft tokens that may come next; a step computes them all and keeps those that are sampled."""
