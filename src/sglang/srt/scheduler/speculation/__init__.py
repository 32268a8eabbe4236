"""Speculation: draft tokens are computed before they are sampled, and one step samples after each of them.

    output      ... "age":        draft 25 , forced ,"city":" , draft Berlin
    rows        ... "age":   25   ,"   city   ":"   Berlin          in one step
    sampled            25          -    -     Paris   (not used)    25 is as drafted, Paris is not: the rest is discarded

A sampled token depends only on the tokens before it, the seed and its position: so a draft changes the number of steps and never an
output.

    proposers/    the proposers of drafts: one file each, behind one protocol (proposer.py)
    planning.py   which proposer a request gets; which requests get a draft in the next step, and how long it may be

After the step, results.py reports how many tokens of each draft were accepted (`commit_drafts`).

A proposer belongs to one request. State that several requests share (statistics of a grammar; the weights, KV cache and batches of a
draft model) has its own owner in planning.py (`Proposers`).
"""
