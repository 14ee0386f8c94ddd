"""What every stage shares.

In: files, seeds and settings. Out: images, artifact maps, samples at rest, run folders and
checkpoints, all behind the contracts of `core.contracts`. Nothing here knows a model.
"""
