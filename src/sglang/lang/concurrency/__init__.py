"""Event loops, threads, and waiting between them."""
