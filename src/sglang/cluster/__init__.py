"""Several servers behind one address. A server is a process like any other: it is reached by HTTP and started by the command line.

ray           replicas of a model on Ray
serving       the process: address, signals, the end
gateway       which server a request goes to
viewers       those of the machine
replica_views what several replicas show them
held_state    which replica has a stored response, or a session
adapters      which adapters a model has, for servers that are started later
pool          which models are in memory
relay         the bytes of a request and of its answer, whichever servers give it
servers       what of all this the gateway needs to know
route_key     what the choice of a replica needs to know of a request
policy        the choice of a replica
upstream      connections to servers
child         one server as a child process
model_list    which models there are, and their flags
"""
