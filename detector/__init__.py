"""Image to artifact map.

In: images, and labelled sets (shard stores or plain folders) to learn from. Out: a `Detector`
whose map says pixel by pixel how surely the image is broken there, saved as one folder
(`detector.safetensors`, `detector.json`), with its figures, its maps and its overlays.
"""
