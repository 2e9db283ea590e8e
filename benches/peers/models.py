"""A workload as ONNX and as tflite, on the tensors that every library gets."""

import numpy as np

from workloads import EPSILON, Excite, Norm, Scale


def onnx_model(workload, weights):
    """NCHW, opset 17: every engine here reads it."""
    from onnx import TensorProto, checker, helper
    graph = OnnxGraph(weights)
    y = graph.chain(workload.steps, "x")
    if workload.residual:
        graph.node("Add", [y, "x"], "y")
    else:
        graph.nodes[-1].output[0] = "y"

    value = lambda name, c, side: helper.make_tensor_value_info(
        name, TensorProto.FLOAT, [1, c, side, side])
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, workload.name, [value("x", workload.c_in, workload.side)],
            [value("y", workload.c_out, workload.output_side)], graph.constants),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


class OnnxGraph:
    """Its nodes, as PyTorch exports them: those from a LayerNorm on have their channels last, and
    1x1 convolutions there are matrix products."""

    def __init__(self, weights):
        self.weights, self.nodes, self.constants = weights, [], []

    def constant(self, name, value):
        from onnx import numpy_helper
        self.constants.append(
            numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def node(self, op, inputs, output, **attributes):
        from onnx import helper
        self.nodes.append(
            helper.make_node(op, inputs, [output], name=f"{output}.{op}", **attributes))
        return output

    def chain(self, steps, y):
        channels_last = False
        for step in steps:
            if isinstance(step, Excite):
                y = self.excite(step, y)
            elif isinstance(step, Norm):
                y, channels_last = self.norm(step, y), True
            elif isinstance(step, Scale):
                scale = self.constant(f"{step.name}.w", self.weights[step.name][0])
                y = self.node("Mul", [y, scale], step.name)
            else:
                y = self.product(step, y) if channels_last else self.convolution(step, y)
        return self.node("Transpose", [y], "nchw", perm=[0, 3, 1, 2]) if channels_last else y

    def convolution(self, layer, y):
        weight, bias = self.weights[layer.name]
        k, s, p = layer.kernel, layer.stride, layer.kernel // 2
        weight = (weight.transpose(2, 0, 1)[:, None] if layer.depthwise
                  else weight[:, :, None, None])
        inputs = [y, self.constant(f"{layer.name}.w", weight),
                  self.constant(f"{layer.name}.b", bias)]
        y = self.node("Conv", inputs, layer.name, kernel_shape=[k, k], strides=[s, s],
                      pads=[p] * 4, dilations=[1, 1],
                      group=layer.c_out if layer.depthwise else 1)
        return self.activation(layer.activation, y)

    def product(self, layer, y):
        weight, bias = self.weights[layer.name]
        y = self.node("MatMul", [y, self.constant(f"{layer.name}.w", weight.T)],
                      f"{layer.name}.product")
        y = self.node("Add", [y, self.constant(f"{layer.name}.b", bias)], layer.name)
        return self.activation(layer.activation, y)

    def norm(self, step, y):
        weight, bias = self.weights[step.name]
        y = self.node("Transpose", [y], "nhwc", perm=[0, 2, 3, 1])
        inputs = [y, self.constant(f"{step.name}.w", weight), self.constant(f"{step.name}.b", bias)]
        return self.node("LayerNormalization", inputs, step.name, axis=-1, epsilon=EPSILON)

    def excite(self, step, y):
        gate = self.node("GlobalAveragePool", [y], "se.means")
        for layer in step:
            gate = self.convolution(layer, gate)
        return self.node("Mul", [y, gate], "se.scaled")

    def activation(self, name, y):
        output = f"{y}.{name}"
        if name == "relu6":
            bounds = [self.constant(f"{y}.lo", 0), self.constant(f"{y}.hi", 6)]
            return self.node("Clip", [y, *bounds], output)
        if name == "gelu":
            part = lambda op, inputs: self.node(op, inputs, f"{y}.{op}")
            number = lambda name, value: self.constant(f"{y}.{name}", value)
            erf = part("Erf", [part("Div", [y, number("root", 2**0.5)])])
            both = part("Mul", [y, part("Add", [erf, number("one", 1)])])
            return self.node("Mul", [both, number("half", 0.5)], output)
        if name == "hardsigmoid":
            return self.node("HardSigmoid", [y], output, alpha=1 / 6, beta=0.5)
        op = {"relu": "Relu", "hardswish": "HardSwish"}.get(name)
        return self.node(op, [y], output) if op else y


def tflite_model(workload, weights):
    """NHWC, or None: LayerNorm is no operator there."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as s
    if any(isinstance(step, Norm) for step in workload.steps):
        return None
    graph = TfliteGraph(weights)
    x = graph.tensor("x", (1, workload.side, workload.side, workload.c_in))
    y = graph.chain(workload.steps, x)
    if workload.residual:
        y = graph.operator("ADD", [y, x], "y", graph.shape(y), s.AddOptionsT())

    model = s.ModelT(
        version=3, buffers=graph.buffers,
        operatorCodes=[s.OperatorCodeT(builtinCode=c, deprecatedBuiltinCode=c)
                       for c in graph.codes],
        subgraphs=[s.SubGraphT(tensors=graph.tensors, inputs=[x], outputs=[y],
                               operators=graph.operators, name=workload.name)])
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class TfliteGraph:
    """Its operators, as TensorFlow's converter writes them."""

    def __init__(self, weights):
        from ai_edge_litert import schema_py_generated
        self.s, self.weights = schema_py_generated, weights
        self.tensors, self.operators, self.codes = [], [], []
        self.buffers = [self.s.BufferT()]  # the empty one, for all that is not constant

    def tensor(self, name, shape, data=None):
        s = self.s
        integers = data is not None and data.dtype == np.int32
        if data is not None:
            raw = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.buffers.append(s.BufferT(data=raw))
        self.tensors.append(s.TensorT(
            shape=list(shape), name=name, buffer=len(self.buffers) - 1 if data is not None else 0,
            type=s.TensorType.INT32 if integers else s.TensorType.FLOAT32))
        return len(self.tensors) - 1

    def constant(self, name, data):
        return self.tensor(name, data.shape, data)

    def shape(self, tensor):
        return tuple(self.tensors[tensor].shape)

    def operator(self, code, inputs, output, shape, options):
        """Adds it, and the tensor that it gives."""
        s, output = self.s, self.tensor(output, shape)
        code = getattr(s.BuiltinOperator, code)
        if code not in self.codes:
            self.codes.append(code)
        name = type(options).__name__.removesuffix("T")
        self.operators.append(s.OperatorT(
            opcodeIndex=self.codes.index(code), inputs=inputs, outputs=[output],
            builtinOptionsType=getattr(s.BuiltinOptions, name), builtinOptions=options))
        return output

    def chain(self, steps, y):
        for step in steps:
            y = self.excite(step, y) if isinstance(step, Excite) else self.convolution(step, y)
        return y

    def convolution(self, layer, y):
        """A stride of 2 needs a PAD of its own, which XNNPACK folds into the convolution:
        tflite's SAME pads even images at the end only."""
        s, (weight, bias) = self.s, self.weights[layer.name]
        k, stride, side = layer.kernel, layer.stride, self.shape(y)[1]
        options = dict(padding=s.Padding.SAME, strideW=stride, strideH=stride,
                       fusedActivationFunction=self.fused(layer.activation))
        if stride > 1:
            pad = k // 2
            pads = self.constant("pads", np.int32([[0, 0], [pad, pad], [pad, pad], [0, 0]]))
            shape = (1, side + 2 * pad, side + 2 * pad, layer.c_in)
            y = self.operator("PAD", [y, pads], "padded", shape, s.PadOptionsT())
            options["padding"] = s.Padding.VALID
        if layer.depthwise:
            code, weight = "DEPTHWISE_CONV_2D", weight[None]
            options = s.DepthwiseConv2DOptionsT(depthMultiplier=1, **options)
        else:
            code, weight = "CONV_2D", weight[:, None, None]
            options = s.Conv2DOptionsT(**options)
        inputs = [y, self.constant(f"{layer.name}.w", weight),
                  self.constant(f"{layer.name}.b", bias)]
        side = -(-side // stride)
        y = self.operator(code, inputs, layer.name, (1, side, side, layer.c_out), options)
        return self.activation(layer.activation, y)

    def excite(self, step, y):
        s, shape = self.s, self.shape(y)
        axes = self.constant("axes", np.int32([1, 2]))
        gate = self.operator("MEAN", [y, axes], "se.means", (1, 1, 1, shape[-1]),
                             s.ReducerOptionsT(keepDims=True))
        for layer in step:
            gate = self.convolution(layer, gate)
        return self.operator("MUL", [y, gate], "se.scaled", shape, s.MulOptionsT())

    def fused(self, activation):
        """What a convolution does itself."""
        kinds = self.s.ActivationFunctionType
        return {"relu": kinds.RELU, "relu6": kinds.RELU6}.get(activation, kinds.NONE)

    def activation(self, name, y):
        """The others. The hard sigmoid is relu6(x + 3) / 6."""
        s, shape = self.s, self.shape(y)
        if name == "hardswish":
            return self.operator("HARD_SWISH", [y], "hardswish", shape, s.HardSwishOptionsT())
        if name == "hardsigmoid":
            number = lambda value: self.constant(str(value), np.float32([value]))
            options = s.AddOptionsT(fusedActivationFunction=self.fused("relu6"))
            y = self.operator("ADD", [y, number(3)], "relu6", shape, options)
            return self.operator("MUL", [y, number(1 / 6)], "gate", shape, s.MulOptionsT())
        return y
