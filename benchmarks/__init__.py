"""Programs that measure, and the tables they wrote.

In: the finished parts of the project. Out: figures for docs/numbers.md, each with its command.
"""
