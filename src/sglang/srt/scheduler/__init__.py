"""WING 2: decisions. Which requests run next, in which memory, under which grammar. No model code, no kernels.

`scheduler.py` is the loop: receive, admit, step, emit. The import layers are a contract in pyproject.toml ("layers of the scheduler").

    admission/     checks of new requests, the queue and its policies, admission in chunks, fair shares
    cache/         ownership of the slots of the KV pool
    grammar/       constraints: tried in a child process, compiled on side threads, masks filled while the model computes
    media/         images: ids in the prefix tree, embeddings before the rows that need them
    speculation/   drafts from several proposers, verified in one step
"""
