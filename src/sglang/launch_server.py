"""`python -m sglang.launch_server --model-path M`: the same as `sglang serve`."""

from __future__ import annotations

import sys


def main() -> int:
    try:
        from sglang.commands.serve import serve

        return serve(sys.argv[1:], prog="python -m sglang.launch_server", welcome=False)
    except KeyboardInterrupt:  # before the server handles signals
        return 130


if __name__ == "__main__":
    sys.exit(main())
