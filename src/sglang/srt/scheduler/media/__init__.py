"""Requests with images: what stands for an image in the prefix tree, which rows need which embeddings, and whether these are there."""
