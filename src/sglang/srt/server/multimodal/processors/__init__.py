"""Image processors: images to the input of each family's encoder. `base` has the interface, `registry` the table of models."""
