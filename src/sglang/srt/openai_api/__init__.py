"""An older path of the original."""
