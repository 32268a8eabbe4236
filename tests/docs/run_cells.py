"""The documents' cells in the environment of a user, which has nothing of the tests: python -m tests.docs.run_cells text|images FOLDER

FOLDER has tutorial_cells.py. Replaced are the models and the addresses of images, which a local server of files stands in for.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import random
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TEXT_MODEL, VISION_MODEL = "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"
IMAGE = "https://github.com/sgl-project/sglang/blob/main/test/lang/example_image.png?raw=true"
TOY = ROOT / "models" / "toy-vlm"


def load(seeds: Path) -> dict[int, str]:
    """Code of the cells by number."""
    spec = importlib.util.spec_from_file_location("tutorial_cells", seeds / "tutorial_cells.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[int, str] = module.cells()
    return found


@contextlib.contextmanager
def pictures_host() -> Iterator[str]:
    """The address of a server that has the picture of the documents' first question."""
    sys.path.insert(0, str(ROOT / "examples"))
    from toy_vlm import pictures

    with tempfile.TemporaryDirectory() as folder:
        pictures.scene(random.Random(1)).image.save(Path(folder, "example_image.png"))
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
            threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
            yield f"http://127.0.0.1:{httpd.server_port}"
            httpd.shutdown()


def run(texts: list[tuple[str, str]]) -> None:
    """Runs cells in one namespace, as a notebook does."""
    names: dict[str, Any] = {"__name__": "__tutorial__"}
    try:
        for label, text in texts:
            print(f"--- {label}", flush=True)
            exec(compile(text, f"<{label}>", "exec", dont_inherit=True), names)
    finally:
        if "server_process" in names and names["server_process"].poll() is None:
            names["terminate_process"](names["server_process"])


def main() -> int:
    """The command."""
    which, seeds = sys.argv[1], Path(sys.argv[2])
    code = load(seeds)
    if which == "text":
        run([(f"cell {number}", code[number].replace(TEXT_MODEL, "smollm2-135m-instruct")) for number in range(1, 14)])
        return 0
    with pictures_host() as host:
        imports = code[1].split("server_process, port")[0]
        served = code[14].replace(VISION_MODEL, f"{TOY} --allow-private-media")
        asked = code[16].replace(IMAGE, f"{host}/example_image.png")
        run([("imports", imports), ("cell 14", served), ("cell 15", code[15]), ("cell 16", asked), ("cell 17", code[17])])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
