"""The Triton kernels behind cuda/ops.py, one file per family. ops.py defines each op and reference.py has the same in
NumPy; these files divide the work among a GPU's programs.

    common      products of tiles, activations, launch helpers
    rows        embedding, gates, gathers: one program per row and range of columns
    norm        RMS and layer norms: one program per row
    rope        q and k: norm, rotation, KV store
    attention   paged attention: decode (split KV), extend (ragged tiles), merging;  encoder: attention inside segments
    linear      products in a fixed order, with dense, int4 and int8 weights
    logits      penalties, masks, argmax, sums;  sampling: top-k, top-p, min-p and the sample

Row counts are read on the device; grids come from bounds the host knows, and programs beyond the count return at once. So a
launch that was captured in a CUDA graph serves every step up to its bound. Whether Triton interprets or compiles is Triton's own
switch, set before it is imported; nothing here depends on it but `common.dot`.
"""
