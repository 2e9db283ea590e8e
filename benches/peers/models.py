"""A workload as ONNX and as tflite, on the tensors that every library gets."""

import numpy as np


def onnx_model(workload, weights):
    """NCHW, opset 17: every engine here reads it."""
    from onnx import TensorProto, checker, helper, numpy_helper
    nodes, constants = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=f"{output}.{op}", **attributes))
        return output

    y = "x"
    for layer in workload.layers:
        weight, bias = weights[layer.name]
        k, s, p = layer.kernel, layer.stride, layer.kernel // 2
        weight = (weight.transpose(2, 0, 1)[:, None] if layer.depthwise
                  else weight[:, :, None, None])
        inputs = [y, constant(f"{layer.name}.w", weight), constant(f"{layer.name}.b", bias)]
        y = node("Conv", inputs, layer.name, kernel_shape=[k, k], strides=[s, s], pads=[p] * 4,
                 dilations=[1, 1], group=layer.c_out if layer.depthwise else 1)
        if layer.relu6:
            bounds = [constant(f"{y}.lo", 0), constant(f"{y}.hi", 6)]
            y = node("Clip", [y, *bounds], f"{y}.relu6")
    if workload.residual:
        node("Add", [y, "x"], "y")
    else:
        nodes[-1].output[0] = "y"

    value = lambda name, c, side: helper.make_tensor_value_info(
        name, TensorProto.FLOAT, [1, c, side, side])
    graph = helper.make_graph(
        nodes, workload.name, [value("x", workload.c_in, workload.side)],
        [value("y", workload.c_out, workload.output_side)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


def tflite_model(workload, weights):
    """NHWC. A stride of 2 needs a PAD of its own, which XNNPACK folds into the convolution:
    tflite's SAME pads even images at the end only."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as s
    tensors, operators, codes = [], [], []
    buffers = [s.BufferT()]  # the empty one, for all that is not constant

    def tensor(name, shape, data=None, dtype=s.TensorType.FLOAT32):
        if data is not None:
            raw = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            buffers.append(s.BufferT(data=raw))
        buffer = len(buffers) - 1 if data is not None else 0
        tensors.append(s.TensorT(shape=list(shape), type=dtype, buffer=buffer, name=name))
        return len(tensors) - 1

    def operator(code, inputs, output, options):
        if code not in codes:
            codes.append(code)
        name = type(options).__name__.removesuffix("T")
        operators.append(s.OperatorT(
            opcodeIndex=codes.index(code), inputs=inputs, outputs=[output],
            builtinOptionsType=getattr(s.BuiltinOptions, name), builtinOptions=options))
        return output

    side = workload.side
    x = y = tensor("x", (1, side, side, workload.c_in))
    for layer in workload.layers:
        weight, bias = weights[layer.name]
        k, stride = layer.kernel, layer.stride
        options = dict(
            padding=s.Padding.SAME, strideW=stride, strideH=stride,
            fusedActivationFunction=s.ActivationFunctionType.RELU6 if layer.relu6 else 0)
        if stride > 1:
            pad = k // 2
            pads = tensor("pads", (4, 2), np.int32([[0, 0], [pad, pad], [pad, pad], [0, 0]]),
                          s.TensorType.INT32)
            padded = tensor("padded", (1, side + 2 * pad, side + 2 * pad, layer.c_in))
            y = operator(s.BuiltinOperator.PAD, [y, pads], padded, s.PadOptionsT())
            options["padding"] = s.Padding.VALID
        side = -(-side // stride)
        if layer.depthwise:
            code, shape = s.BuiltinOperator.DEPTHWISE_CONV_2D, (1, k, k, layer.c_out)
            options = s.DepthwiseConv2DOptionsT(depthMultiplier=1, **options)
        else:
            code, shape = s.BuiltinOperator.CONV_2D, (layer.c_out, 1, 1, layer.c_in)
            options = s.Conv2DOptionsT(**options)
        inputs = [y, tensor(f"{layer.name}.w", shape, weight),
                  tensor(f"{layer.name}.b", bias.shape, bias)]
        y = operator(code, inputs, tensor(layer.name, (1, side, side, layer.c_out)), options)
    if workload.residual:
        output = tensor("y", (1, side, side, workload.c_out))
        y = operator(s.BuiltinOperator.ADD, [y, x], output, s.AddOptionsT())

    model = s.ModelT(
        version=3, buffers=buffers,
        operatorCodes=[s.OperatorCodeT(builtinCode=c, deprecatedBuiltinCode=c) for c in codes],
        subgraphs=[s.SubGraphT(tensors=tensors, inputs=[x], outputs=[y], operators=operators,
                               name=workload.name)])
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
