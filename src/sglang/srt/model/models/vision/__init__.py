"""Encoders: images to rows of the decoder's width. `layers` holds what they are built of, each other file one family."""
