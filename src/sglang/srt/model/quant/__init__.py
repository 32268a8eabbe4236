"""Number formats of weights: `blocks` says what each format's bytes mean, `formats` holds tensors in them."""
