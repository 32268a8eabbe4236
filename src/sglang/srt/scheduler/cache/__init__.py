"""Who owns which slot of the KV pool.

kv_memory.py        what a request needs of memory, in a few verbs; the image of ownership
radix_cache.py      the tree of prefixes that outlive their requests
page_allocator.py   free and held slots
req_to_token.py     [row, position] -> slot
"""
