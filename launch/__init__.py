"""Programs as jobs.

In: the frozen config of a program and a place to run it (this machine, a cluster, a queue). Out:
a process that knows only its run folder, and the state of that folder told to whoever asks. The
stage is empty so far: programs run as `diffdoctor COMMAND`, as `python -m package.module`, or
under `accelerate launch -m treat.train` with a file of `accelerate_configs/`.
"""
