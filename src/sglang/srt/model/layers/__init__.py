"""The building blocks of models. Each reads its weights from a checkpoint when it is created and afterwards only calls ops on the
static buffers of a step; none uses an array library.
"""
