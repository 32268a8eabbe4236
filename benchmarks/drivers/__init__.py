"""One file an engine. Each runs in that engine's own environment and talks JSON lines on standard input and output."""
