"""A small world with exact truth, so that the whole method runs for real on two CPU cores.

In: nothing but the law. Out: renders and prompts, an oracle that knows every artifact, base
models in the real FLUX, SDXL and Kolors architectures trained from the law, and the tables that
judge treatments.
"""
