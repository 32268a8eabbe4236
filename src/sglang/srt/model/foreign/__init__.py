"""Decoders that the transformers library computes, with our attention and our KV pool (`--model-impl transformers`)."""
