"""The worker of the libraries that Python calls: worker.py LIBRARY THREADS.

The same protocol as the Rust and C++ workers'; README.md lists its commands.
"""

import sys
import time
from pathlib import Path

import numpy as np

THREADS = int(sys.argv[2])


class Unsupported(Exception):
    """The library has no such layer."""


class Litert:
    """XNNPACK, which LiteRT delegates f32 convolutions to."""
    layout, model = "nhwc", "model.tflite"

    def __init__(self, folder, shape, x):
        from ai_edge_litert.interpreter import Interpreter
        self.interpreter = Interpreter(str(folder / self.model), num_threads=THREADS)
        self.interpreter.allocate_tensors()
        self.interpreter.set_tensor(self.interpreter.get_input_details()[0]["index"], x)
        operators = [o["op_name"] for o in self.interpreter._get_ops_details()]
        if "DELEGATE" not in operators:
            raise RuntimeError(f"XNNPACK took no part of {operators}")
        self.run = self.interpreter.invoke

    def output(self):
        return self.interpreter.get_tensor(self.interpreter.get_output_details()[0]["index"])


class Onnxruntime:
    layout, model = "nchw", "model.onnx"

    def __init__(self, folder, shape, x):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
        session = onnxruntime.InferenceSession(
            str(folder / self.model), options, providers=["CPUExecutionProvider"])
        value = onnxruntime.OrtValue
        self.y = value.ortvalue_from_shape_and_type(session.get_outputs()[0].shape, np.float32)
        self.binding = session.io_binding()
        self.binding.bind_ortvalue_input("x", value.ortvalue_from_numpy(x))
        self.binding.bind_ortvalue_output("y", self.y)
        self.run = lambda: session.run_with_iobinding(self.binding)

    def output(self):
        return self.y.numpy()


class Openvino:
    """With NHWC at both ends, which is how its convolutions work inside: no reorders."""
    layout, model = "nhwc", "model.onnx"

    def __init__(self, folder, shape, x):
        import openvino
        from openvino.preprocess import PrePostProcessor
        model = openvino.Core().read_model(folder / self.model)
        ends = PrePostProcessor(model)
        images = [ends.input()] + [ends.output()] * (len(model.output(0).shape) == 4)
        for end in images:
            end.model().set_layout(openvino.Layout("NCHW"))
            end.tensor().set_layout(openvino.Layout("NHWC"))
        compiled = openvino.compile_model(ends.build(), "CPU", {
            "INFERENCE_NUM_THREADS": THREADS, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"})
        self.request = compiled.create_infer_request()
        self.request.set_input_tensor(openvino.Tensor(x))
        self.run = self.request.infer

    def output(self):
        return self.request.get_output_tensor().data


def load(library, line):
    name, kind, side, c_in, *_, folder = line.split(" ", 10)
    folder, side, c_in = Path(folder), int(side), int(c_in)
    if not (folder / library.model).exists():
        raise Unsupported(f"no {library.model} of kind {kind}")
    shape = (1, side, side, c_in) if library.layout == "nhwc" else (1, c_in, side, side)
    x = np.fromfile(folder / f"x.{library.layout}.f32", "<f4").reshape(shape)
    return library(folder, shape, x)


def timed(run, milliseconds):
    """The microseconds of each call, at least three, after a fifth of the time to warm up."""
    clock, budget = time.perf_counter_ns, milliseconds * 1_000_000
    start = clock()
    run()
    while clock() - start < budget / 5:
        run()
    start, times = clock(), []
    while len(times) < 3 or clock() - start < budget:
        call = clock()
        run()
        times.append((clock() - call) / 1e3)
    return " ".join(f"{us:.2f}" for us in times)


def main():
    library = {"xnnpack": Litert, "onnxruntime": Onnxruntime, "openvino": Openvino}[sys.argv[1]]
    engine = None
    for line in sys.stdin:
        command, _, rest = line.rstrip("\n").partition(" ")
        try:
            answer = ""
            if command == "quit":
                break
            elif command == "load":
                engine = None  # frees its memory first
                engine = load(library, rest)
                answer = f"{library.layout} native"
            elif command == "run":
                answer = timed(engine.run, int(rest))
            elif command == "output":
                engine.run()
                np.ascontiguousarray(engine.output(), "<f4").tofile(rest)
            else:
                raise ValueError(f"no command {command}")
            print("ok", answer, flush=True)
        except Unsupported as reason:
            print("unsupported", reason, flush=True)
        except Exception as error:  # whatever a library throws is its answer
            print("error", type(error).__name__, str(error).replace("\n", " "), flush=True)


main()
