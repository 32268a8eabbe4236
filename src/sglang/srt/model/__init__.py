"""WING 3: arithmetic, on one device, from ids to sampled ids.

The scheduler calls `worker.py`. The import layers are a contract in pyproject.toml ("layers of the model").

    models/        decoders and encoders: a frame, and a short file for each family with its own layers
    layers/        the building blocks of models: they read weights when created, and call ops on static buffers afterwards
    kernels/       the declaration of every op, and the op sets that implement them: NumPy, C++, Triton
    sampling/      from logits to ids
    weights/       from a model's files to checked tensors
    quant/         the formats that matrices are stored in
    distributed/   one model over several processes
"""
