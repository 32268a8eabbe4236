"""`sglang bench serve` and `sglang bench offline`: benchmarks of a server and of the engine."""

from __future__ import annotations

from sglang.commands.arguments import CommandError

USAGE = """usage: sglang bench serve ...      load a server over HTTP and measure what its clients see
       sglang bench offline ...    measure the engine in this process
"""


def bench(argv: list[str]) -> int:
    """The command."""
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if name == "serve":
        from sglang.commands.bench_serve import bench_serve

        return bench_serve(rest)
    if name == "offline":
        from sglang.commands.bench_offline import bench_offline

        return bench_offline(rest)
    raise CommandError(f"there is no bench {name}; there are bench serve and bench offline")
