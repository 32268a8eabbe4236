"""The commands of `sglang`, one file each; cli.py holds the table.

serve.py          serve a model                       chat.py           talk to one in the terminal
run.py            one prompt, one answer              models.py         models known by a short name
bench_serve.py    load a server and measure it        bench_offline.py  measure the engine in this process

connection.py     the server that a command talks to: one that runs, or one started for the session
load.py           requests at a rate, timed           report.py         percentiles, tables, charts
"""
