"""Runs where cvat-sdk is installed: masks and points in, each as the other out; JSON."""

import json
import sys

import numpy as np
from cvat_sdk import masks

request = json.load(sys.stdin)
encoded = [masks.encode_mask(np.array(mask, bool)) for mask in request["masks"]]
decoded = [
    masks.decode_mask(points, image_height=height, image_width=width).tolist()
    for points, height, width in request["points"]
]
json.dump({"encoded": encoded, "decoded": decoded}, sys.stdout)
