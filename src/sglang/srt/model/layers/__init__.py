"""The pieces models are built of. Each takes its weights from a checkpoint when made and afterwards only calls ops on the
static buffers of a step; none touches an array library.
"""
