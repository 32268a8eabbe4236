"""The settings of each model family: a row in `table.py` where it differs only in its config."""
