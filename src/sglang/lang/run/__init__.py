"""One run of a program: the state it writes on, and what executes the pieces."""
