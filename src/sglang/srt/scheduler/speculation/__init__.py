"""Speculation: tokens that may come next are computed before they are sampled, and one step samples after each of them.

    output      ... "age":        draft 25 , forced ,"city":" , draft Berlin
    rows        ... "age":   25   ,"   city   ":"   Berlin          in one step
    sampled            25          -    -     Paris   (not used)    25 is as drafted, Paris is not: what follows is void

A sampled token depends on the tokens before it, the seed and its position alone, whoever else is in the step: so a draft changes
the number of steps and never an output.

    proposers/    who proposes drafts: one file each, behind one protocol (proposer.py)
    planning.py   which proposer a request gets; which requests get a draft in the next step, and how long it may be

How much of each draft came out as sampled, results.py says after the step (`commit_drafts`).

A proposer belongs to one request and proposes for it alone. What several requests share (statistics of a grammar; the weights, KV
cache and batches of a draft model) stands behind it, with an owner of its own in planning.py (`Proposers`).
"""
