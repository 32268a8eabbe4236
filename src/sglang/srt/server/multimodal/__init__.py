"""Images and videos: from what a request names to arrays for the model and spans of tokens. pyproject.toml has the layers ("layers of
media").

intake.py        all of it for one request
inputs.py        what requests name
sources.py       bytes from data, files and URLs: addresses.py, fetching.py
headers.py       what files promise; media.py: and what that costs
decoding.py      files to RGB, in child processes (decode_work.py)
processors/      RGB to what a family's encoder wants
spans.py         placeholders in a prompt to spans of tokens
"""
