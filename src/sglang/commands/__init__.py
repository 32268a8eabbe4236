"""The commands of `sglang`, one file each; cli.py has the table. connection, load and report are shared by them."""
