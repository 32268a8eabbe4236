"""Number formats of weights: `blocks` defines the layout of each format, `formats` the tensors in them."""
