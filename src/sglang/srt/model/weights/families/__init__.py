"""What each family of models has of its own: a row of `table.py` where it differs in numbers alone."""
