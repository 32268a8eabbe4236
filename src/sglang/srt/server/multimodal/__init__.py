"""Images and videos: from a request to arrays for the model and spans of tokens. pyproject.toml has the layers ("layers of
media").

intake.py        the whole pipeline of one request
inputs.py        images and videos as requests name them
sources.py       bytes from data, files and URLs: addresses.py, http_get.py, fetching.py
headers.py       sizes in file headers; media.py: their cost
decoding.py      files to RGB, in child processes (decode_work.py)
processors/      RGB to the input of a family's encoder
spans.py         placeholders in a prompt to spans of tokens
"""
