"""Raw images and masks to a balanced, labelled set.

In: images of any source with or without masks, and a detector. Out: a shard store in which no
category dominates, hard cases carry human masks and the rest pseudo-labels. The store is
`core.shards`'; the detector is trained from such a store wherever it comes from. The loop: `tag`
says what images show, `balance` which categories the detector judges oddly, `write_prompts` and
`synthesize` make images of those.
"""
