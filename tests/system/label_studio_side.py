"""Runs where label-studio-sdk is installed: masks and brushes in, each as the other out; JSON."""

import json
import sys

import numpy as np
from label_studio_sdk.converter import brush

request = json.load(sys.stdin)
encoded = [brush.mask2rle(np.array(mask, np.uint8)) for mask in request["masks"]]
decoded = [brush.decode_rle(rle).reshape(-1, 4)[:, 3].tolist() for rle in request["brushes"]]
packed = [brush.encode_rle(np.array(words, np.uint8)) for words in request["words"]]
json.dump({"encoded": encoded, "decoded": decoded, "packed": packed}, sys.stdout)
