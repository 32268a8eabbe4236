"""What happened in a run: its log, recordings of it, and the page that shows one."""
