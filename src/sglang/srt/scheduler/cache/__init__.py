"""Who owns which slot of the KV pool; kv_memory.py has the diagram."""
