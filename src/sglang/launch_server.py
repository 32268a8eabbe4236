"""`python -m sglang.launch_server --model-path M`: the same as `sglang serve`."""

from __future__ import annotations

import sys


def main() -> int:
    from sglang.cli import serve

    return serve(sys.argv[1:], prog="python -m sglang.launch_server")


if __name__ == "__main__":
    sys.exit(main())
