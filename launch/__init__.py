"""Programs as jobs.

In: the frozen config of a program and a place to run it (this machine, a cluster, a queue). Out:
a process that knows only its run folder, and the state of that folder told to whoever asks.

methods.py    which programs can be jobs, and which of their settings may name what
folder.py     the files by which service, launcher and trainer speak to each other
trainer.py    one attempt: the process in a run folder
launchers/    where trainers run
service/      HTTP, tables and queue
client.py     the service from Python, without torch; commands/ from the command line
"""
