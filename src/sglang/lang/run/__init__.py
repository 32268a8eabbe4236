"""One run of a program: its state, and the executor of the expressions that are added to it."""
