"""Encoders of images in files: their configs, the names and shapes of their tensors, mmproj files."""
