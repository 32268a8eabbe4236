"""The draft model: a small model whose answer is the draft of the large one's.

lengths.py   what steps cost and how often drafts are right, and so how long they may be
model.py     the draft model's worker, its KV memory, and the requests it follows
chain.py     the proposer of one request
"""
