"""WING 3: arithmetic, on one device, from ids to sampled ids.

`worker.py` is what the scheduler talks to. Who may import whom is a contract in pyproject.toml ("layers of the model").

    models/        decoders and encoders: a frame, and a short file for each family with layers of its own
    layers/        what models are built of: weights when made, ops on static buffers afterwards
    kernels/       every op declared once, and the sets that compute them: NumPy, C++, Triton
    sampling/      from logits to ids
    weights/       from a model's files to checked tensors
    quant/         the formats that matrices are stored in
    distributed/   one model over several processes
"""
