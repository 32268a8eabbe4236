"""Pixels on the server's side, lowest first: `inputs` (what requests name), `shares` (places and bytes that clients share), `addresses`,
`fetching` and `sources` (bytes), `headers` and `media` (what files promise), `clip` (frames and their times), `decode_work` and
`decoding` (files to RGB, in child processes), `spans` (placeholders to spans of tokens), `processors/` (RGB to what an encoder wants),
`intake` (all of it for one request)."""
