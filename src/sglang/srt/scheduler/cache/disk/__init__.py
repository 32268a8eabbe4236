"""The prefix cache on disk: what the tree held is there again after a restart (--cache-dir).

    RadixCache --reused, evicted, at the end--> Save ---writer's thread---> RecordStore ---> segment files
    RadixCache <---------- entered ------------ Load <--reader's thread---- RecordStore <---

    records     a record is the keys and values of one run of slots (16 tokens), and how it is named and checked
    names       what a prefix is called in every process, images and adapters included
    segments    append-only files of records
    host_store  records in host memory, in front of the disk or alone (--enable-hierarchical-cache)
    store       all records of one fingerprint, in a folder of checkpoint/cache_folder.py: finds, reads, appends, forgets the least recently used segment
    archive     the records of one fingerprint in one file, checked where it is read
    transfers   the two threads and their jobs
    state_records  states of recurrent layers, which lie in several records each
    tier        the scheduler's side: what is read and written, and when

Whatever goes wrong with the disk costs time, and never an answer or a request: a record that cannot be read is computed.
"""
