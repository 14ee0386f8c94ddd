"""In: words of the command line. Out: a server, a token, or a job asked for over HTTP; no torch."""
