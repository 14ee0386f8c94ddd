"""Steps between two states of the tables, in order of their numbers; never changed once shipped."""
