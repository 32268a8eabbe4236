"""Requests with images: what stands for an image in the prefix tree, which rows need which embeddings, and whether these are there.

arriving.py        what a request brings: checked, completed, and given ids for the tree
req_media.py       what one request needs of its images in a step
encoder_gate.py    embeddings are there before the rows that need them
"""
