"""Encoders: images to rows of the decoder's width. `layers` has their building blocks, each other file one family."""
