"""In: a database of any age. Out: the same with today's tables; `versions/` has one step a file."""
