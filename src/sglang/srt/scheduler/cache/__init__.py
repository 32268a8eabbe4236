"""Ownership of the slots of the KV pool; kv_memory.py has the diagram."""
