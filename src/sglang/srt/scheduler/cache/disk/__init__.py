"""The prefix cache on disk: what the tree held is there again after a restart (--cache-dir).

    RadixCache --reused, evicted, at the end--> Save ---writer's thread---> RecordStore ---> segment files
    RadixCache <---------- entered ------------ Load <--reader's thread---- RecordStore <---

    records     a record is the keys and values of one run of slots (16 tokens), and how it is named and checked
    segments    append-only files of records
    folder      who may write, and how much room there is
    store       all records of one fingerprint: finds, reads, appends, forgets the least recently used segment
    transfers   the two threads and their jobs
    tier        the scheduler's side: what is read and written, and when

Whatever goes wrong with the disk costs time, and never an answer or a request: a record that cannot be read is computed.
"""
