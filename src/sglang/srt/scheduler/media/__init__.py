"""Requests with images: ids of images in the prefix tree, the rows that need embeddings, and waiting for these."""
