"""Tensor parallelism: one model over several processes, each with its part of every matrix.

From bottom to top: ranks (sums and gathers), sharding (which part is whose), ops (an op set that sums), wire (a step as bytes),
leader (rank 0, the scheduler's worker), follower (the others' process).
"""
