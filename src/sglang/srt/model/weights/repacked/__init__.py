"""Packed weights, kept on disk for the next start (--weights-cache).

    first start     checkpoint --tensors--> kernels pack --> memory --a side thread--> KEY.new, renamed KEY.packed
    later starts    KEY.packed --copied or mapped, checked--> kernels; the checkpoint's matrices are not read

    packed_file     the format of a file
    session         one start: what the kernels ask for, in their order, and what they packed; tensors that are read only when needed
    packed_store    opens files, writes them, keeps the folder within its limit
    opening         which file belongs to a model: everything that decides its bytes

Whatever goes wrong with the disk, or with a file, costs the time of packing, and never an answer.
"""
