"""Raw images and masks to a balanced, labelled set.

In: images of any source with or without masks, and a detector. Out: shard stores (`core.shards`) in
which no category dominates, hard cases carry people's masks and the rest pseudo-labels, to train
the next detector from. In the order of the work: `import_data` and `formats/`; `check`, `stats`,
`preview`; `tag` and `balance`, which find the categories that need images; `write_prompts` and
`synthesize`, which make them; `hard_cases`, `annotate_out` and `annotate_in`, which bring people
in; `pseudo_label` for all others; `round` does all of it, again and again. Each command goes on
where it was stopped.
"""
