"""In: a base model, a frozen detector, prompts and real images. Out: LoRA adapters in a run folder.

`train` is the method on one screen; `step` its three phases; `pixel_loss` and `offline` its terms;
`sample`, `watch` and `refresh` look at the treated model while it learns.
"""
