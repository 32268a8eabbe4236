"""Tensor parallelism: one model over several processes, each with its part of every matrix. `leader` is rank 0, the scheduler's
worker; `follower` the others' process.
"""
