"""The processes of a server: starting, watching and isolating them, and how messages travel between them."""
