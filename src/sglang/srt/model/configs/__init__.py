"""What a model is made of, as numbers, where that is a matter of its own."""
