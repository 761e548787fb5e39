"""MAXIM (Tu et al. 2022) as a peer to measure against: the published weights, unpacked from the npm packages
@upscalerjs/maxim-*, run by TensorFlow. Load the pipeline of `rr` first: Triton crashes when it comes after TensorFlow.

    npm pack @upscalerjs/maxim-denoising && mkdir denoising
    tar xzf upscalerjs-maxim-denoising-*.tgz -C denoising --strip-components=1
    pip install tensorflow-cpu"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rr.restorer import pad_to_multiple

TASKS = dict(fog='dehazing-indoor', rain='deraining', blur='deblurring', noise='denoising')  # kind -> package


class Maxim:
    "One model: (3, H, W) in [0, 1] -> the same size, restored."

    def __init__(self, folder: Path | str):  # with models/model.json
        import tensorflow as tf
        from google.protobuf import json_format
        from tensorflow.core.framework import graph_pb2

        folder = Path(folder) / 'models'
        model = json.loads((folder / 'model.json').read_text())
        weights = self.read_weights(folder, model['weightsManifest'])
        graph = json_format.Parse(
            json.dumps(model['modelTopology']), graph_pb2.GraphDef(), ignore_unknown_fields=True
        )
        for node in graph.node:
            if node.op == 'Const':
                node.attr['value'].tensor.CopyFrom(tf.make_tensor_proto(weights[node.name]))
        names = [next(iter(model['signature'][side].values()))['name'] for side in ('inputs', 'outputs')]
        wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=''), [])
        self.run = wrapped.prune(*(wrapped.graph.get_tensor_by_name(n) for n in names))
        self.tensor = tf.constant

    @staticmethod
    def read_weights(folder: Path, manifest: list) -> dict[str, np.ndarray]:
        "The weights by name, from the shards that follow each other."
        found = {}
        for group in manifest:
            data, at = b''.join((folder / p).read_bytes() for p in group['paths']), 0
            for w in group['weights']:
                kind, n = np.dtype(w['dtype']), math.prod(w['shape'])
                found[w['name']] = np.frombuffer(data, kind, n, at).reshape(w['shape'])
                at += n * kind.itemsize
        return found

    def __call__(self, image: Tensor) -> Tensor:
        padded, (h, w) = pad_to_multiple(image[None].float(), 64), image.shape[-2:]
        result = self.run(self.tensor(padded.permute(0, 2, 3, 1).numpy()))
        return torch.from_numpy(np.array(result)).permute(0, 3, 1, 2)[0, :, :h, :w].clamp(0, 1).to(image)
