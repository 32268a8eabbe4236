"""WING 2: decisions. Which requests run next, in which memory, under which grammar. No model code, no kernels.

`scheduler.py` is the loop: receive, admit, step, emit. Who may import whom is a contract in pyproject.toml ("layers of the scheduler").

    admission/     what may enter, the queue and its policies, who is admitted in what chunks, whose turn it is
    cache/         who owns which slot of the KV pool
    grammar/       constraints: tried in a child, compiled on the side, masks filled while the model computes
    media/         images: ids in the prefix tree, embeddings before the rows that need them
    speculation/   drafts from several proposers, verified in one step
"""
