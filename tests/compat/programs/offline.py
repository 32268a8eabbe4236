"""An engine whose flags come from the program's own command line, streamed."""

import argparse
import asyncio
import dataclasses

import sglang as sgl
from sglang.srt.server_args import ServerArgs
from sglang.utils import async_stream_and_merge, stream_and_merge


async def pieces(llm, prompt, params):
    return [piece async for piece in async_stream_and_merge(llm, prompt, params)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt", default="ha ha ha ha")
    ServerArgs.add_cli_args(parser)
    args = parser.parse_args()
    server_args = ServerArgs.from_cli_args(args)
    params = {"temperature": 0, "max_new_tokens": 64, "ignore_eos": True}
    with sgl.Engine(**dataclasses.asdict(server_args)) as llm:
        whole = llm.generate(args.prompt, params)["text"]
        assert stream_and_merge(llm, args.prompt, params) == whole
        parts = asyncio.run(pieces(llm, args.prompt, params))
        assert "".join(parts) == whole and len(parts) > 1, parts  # drafts make pieces long
    print("all good")


if __name__ == "__main__":
    main()
