"""Several servers behind one address. A server is a process like any other: it is reached by HTTP and started by the command line.

serving     the process: address, signals, the end
gateway     which server a request goes to
pool        which models are in memory
relay       the bytes of a request and of its answer
upstream    connections to servers
child       one server as a child process
model_list  which models there are, and their flags
"""
