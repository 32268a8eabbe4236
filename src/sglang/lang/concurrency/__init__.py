"""Event loops, threads, and how they wait for one another."""
