"""In: a base model's folder or Hub id. Out: a `DiffusionModel`, frozen, ready to be treated.

Each family is one file that wraps what diffusers ships; nothing outside this folder knows how the
families differ.
"""
