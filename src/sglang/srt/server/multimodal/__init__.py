"""Pixels on the server's side, lowest first: `inputs` (what requests name), `sources` (fetch bytes), `media` (bytes to pictures), `spans` (placeholders to
spans of tokens), `processors/` (pictures to what an encoder wants), `intake` (all of it for one request, on side threads)."""
