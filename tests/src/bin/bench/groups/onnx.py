"""Runs onnxruntime, one thread, as `hop3-bench` asks: arguments MODEL INPUT ...; says its version,
then answers each line with microseconds: `N` runs case N once, `N COUNT` as often in a tight loop
(the median)."""

import sys
import time

import numpy
import onnxruntime


def prepare(model, array):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # Bound inputs and outputs: the least that Python adds to the time in the model.
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, numpy.ascontiguousarray(array))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    return session, binding


def once(case):
    session, binding = case
    begun = time.perf_counter_ns()
    session.run_with_iobinding(binding)
    return (time.perf_counter_ns() - begun) / 1000


arguments = sys.argv[1:]
cases = [
    prepare(model, numpy.load(array))
    for model, array in zip(arguments[::2], arguments[1::2], strict=True)
]
print(onnxruntime.__version__, flush=True)
for line in sys.stdin:
    case, count = (*map(int, line.split()), 1)[:2]
    times = sorted(once(cases[case]) for _ in range(count))
    print(times[count // 2], flush=True)
