"""From a model's files to checked tensors."""
