"""Tensor parallelism: one model over several processes, each with a part of every matrix. `leader` is rank 0, the scheduler's
worker; `follower` is the process of every other rank.
"""
