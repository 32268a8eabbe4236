"""Asks /health again and again until its standard input ends, then prints how long each answer took, in milliseconds, one a line. In a
process of its own: the threads of an attacking test hold the interpreter's lock, and the wait for that is not the server's.
Usage: health_probe.py HOST PORT SECONDS_BETWEEN PATIENCE"""

from __future__ import annotations

import http.client
import select
import sys
import time


def main(host: str, port: int, between: float, patience: float) -> None:
    took = []
    connection = http.client.HTTPConnection(host, port, timeout=patience)
    while not select.select([sys.stdin], [], [], between)[0]:
        began = time.monotonic()
        connection.request("GET", "/health")
        connection.getresponse().read()
        took.append((time.monotonic() - began) * 1000)
    print("\n".join(map(str, took)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
