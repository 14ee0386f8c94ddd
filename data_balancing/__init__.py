"""Raw images and masks to a balanced, labelled set.

In: images of any source with or without masks, and a detector. Out: a shard store in which no
category dominates, hard cases carry human masks and the rest pseudo-labels. The stage is empty so
far: the shard store it will write is `core.shards`, and the detector is trained from such a store
wherever it comes from.
"""
