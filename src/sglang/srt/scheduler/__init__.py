"""WING 2: decisions. Which requests run next, in which memory, under which grammar. No model code, no kernels.

A file imports only what stands below it in this list:

    scheduler.py        the loop: receive, admit, step, emit
    admission/inlet.py  what may enter the queue, and the grammars that must compile first
    results.py          sampled ids -> requests -> TokenOut
    output.py           how the output of one request grows: sampled and forced tokens
    speculation/        drafts: rows of tokens that may follow, from several proposers, verified in one step
    batch.py            requests -> ForwardBatch
    decode.py           memory for the next token of everyone; retraction
    admission/          the queue and its policies, who is admitted, in what chunks, with what budget, and whose turn it is
    stats.py            log lines and SchedulerStats
    req.py              one request
    finish.py           when a request ends: ids, stop strings, stop expressions, lengths
    cache/              who owns which slot of the KV pool
    grammar/            constraints: tried in a child, compiled on the side, masks filled while the model computes
    stop_regex.py       stop expressions, and where those are searched that take long
    trial_messages.py   what a child is asked and answers
"""
