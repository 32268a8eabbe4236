"""Replicas of a model on Ray: Ray Serve starts, watches, counts and routes; requests and answers do not pass through it.

    gateway --a call of a Serve handle, which lasts as long as requests need it--> lease: address of a replica
    gateway <-------------------- HTTP, every endpoint as it is -----------------> the replica's server

on_ray      the command
leases      the replicas, as the gateway sees them
deployment  what is deployed
connection  the connection to Ray
batches     files of requests, on Ray Data
router      which replica: Serve's request router, by cluster/policy.py
replica     the actor: our own server as its child
nodes       the actors of other machines, where one replica needs several

Ray is imported here and nowhere else.
"""

import os

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # else a call after the end of a server starts Ray once more
