"""Times onnxruntime on models, one thread, as `hop3-bench` asks: MODEL INPUT COUNT ..."""

import json
import sys
import time

import numpy
import onnxruntime


def median_us(model, array, count):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # Bound inputs and outputs: the least that Python adds to the time in the model.
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, numpy.ascontiguousarray(array))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    times = []
    for i in range(count + count // 5):
        begun = time.perf_counter_ns()
        session.run_with_iobinding(binding)
        times.append((time.perf_counter_ns() - begun) / 1000)
    kept = sorted(times[count // 5 :])
    return kept[len(kept) // 2]


arguments = sys.argv[1:]
print(
    json.dumps(
        {
            "version": onnxruntime.__version__,
            "us": [
                median_us(model, numpy.load(array), int(count))
                for model, array, count in zip(
                    arguments[::3], arguments[1::3], arguments[2::3], strict=True
                )
            ],
        }
    )
)
