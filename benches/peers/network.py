"""A whole network from its files: EfficientNet-Lite0, as ONNX, safetensors and tflite.

`--network DIR` takes a folder with efficientnet_lite0.safetensors, as
examples/fetch_efficientnet_lite0.py writes it, and the same network as efficientnet_lite0.onnx; a
.tflite there serves XNNPACK.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NAME = "efficientnet_lite0"
SIDE, CLASSES = 224, 1000


@dataclass(frozen=True)
class Network:
    """What of a workload the workers, the tables and the charts ask for."""
    source: Path
    name: str = NAME
    kind: str = "net"
    group: str = "Whole network"
    label: str = f"{SIDE}² to {CLASSES} classes"
    c_out: int = CLASSES
    output_side: int = 1

    def prepare(self, folder):
        """Writes the input and the models; gives the expected output."""
        import onnx
        from onnx.reference import ReferenceEvaluator
        model = onnx.load(self.source / f"{NAME}.onnx")
        for end, name in (model.graph.input[0], "x"), (model.graph.output[0], "y"):
            for node in model.graph.node:
                for names in node.input, node.output:
                    for i, old in enumerate(names):
                        if old == end.name:
                            names[i] = name
            end.name = name
        onnx.save(model, folder / "model.onnx")
        shutil.copy(self.source / f"{NAME}.safetensors", folder / "model.safetensors")
        if (tflite := self.source / f"{NAME}.tflite").exists():
            shutil.copy(tflite, folder / "model.tflite")
        # As a normalised photo: between -1 and 1.
        x = np.random.default_rng(0).uniform(-1, 1, (1, 3, SIDE, SIDE)).astype(np.float32)
        x.astype("<f4").tofile(folder / "x.nchw.f32")
        np.ascontiguousarray(x.transpose(0, 2, 3, 1), "<f4").tofile(folder / "x.nhwc.f32")
        y, = ReferenceEvaluator(model).run(None, {"x": x})
        return y.reshape(1, 1, CLASSES)

    def line(self, folder):
        return f"{self.name} {self.kind} {SIDE} 3 0 {CLASSES} {SIDE} 1 relu6 0 {folder}"

    @property
    def flops(self):
        return 2 * self._sums()[0]

    @property
    def bytes(self):
        """Input, weights and output, once each."""
        return 4 * (3 * SIDE**2 + self._sums()[1] + CLASSES)

    def _sums(self):
        """Multiply-adds and weights."""
        import onnx
        from onnx import shape_inference
        model = shape_inference.infer_shapes(onnx.load(self.source / f"{NAME}.onnx"))
        sizes = {t.name: np.prod(t.dims) for t in model.graph.initializer}
        pixels = {v.name: np.prod([d.dim_value for d in v.type.tensor_type.shape.dim][2:])
                  for v in (*model.graph.value_info, *model.graph.output)}
        layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        return (int(sum(sizes[n.input[1]] * pixels[n.output[0]] for n in layers)),
                int(sum(sizes.values())))
