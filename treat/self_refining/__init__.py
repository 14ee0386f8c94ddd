"""Self-refining diffusion (arXiv 2512.08774): a base trained on, with its own flaws in sight.

A classifier of real and generated images shows where the base's own images give themselves away
(`detector.flaw_map`); the mean of such maps amplifies the noise that the base learns to predict
there (`noise`), and the keys and values of its attention (`attention`), while it is trained on
(`train`). Afterwards it is sampled plainly: no map, no classifier.
"""
