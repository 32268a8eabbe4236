"""Command lines: how flags are named, read and shown. The fields themselves are in server_args.py."""
