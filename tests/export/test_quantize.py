"""Weights of 8 bits."""

import numpy as np
import pytest
from export.conftest import session
from onnx import TensorProto, numpy_helper

from hyperconformer.export.quantize import linear_layers, quantize

pytestmark = pytest.mark.integration


def test_only_linear_layers_are_quantised(chunks, tmp_path):
    graph, model, runtime = chunks
    small = quantize(model)
    kinds = [node.op_type for node in small.graph.node]
    before = [node.op_type for node in model.graph.node]
    layers = linear_layers(model)
    assert kinds.count("MatMulInteger") == len(layers) > 4
    assert kinds.count("Conv") == before.count("Conv") > 0
    # The spectra, the filters and the mixture stay.
    left = kinds.count("MatMul") + kinds.count("Gemm")
    assert left == before.count("MatMul") + before.count("Gemm") - len(layers) > 2
    assert len(small.SerializeToString()) < len(model.SerializeToString())

    inputs = {
        "samples": 0.1 * np.random.default_rng(0).normal(size=(1, graph.window)),
        "length": np.array([graph.window]),
        "state": np.zeros((1, graph.layout.size)),
    }
    inputs = {k: v.astype("i8" if k == "length" else "f4") for k, v in inputs.items()}
    expected, *_ = runtime.run(None, inputs)
    got, *_ = session(small, tmp_path / "m.onnx").run(None, inputs)
    assert 0 < np.abs(got - expected).max() < 0.2


def test_no_processor_overflows(chunks):
    """255 a + 255 b, for two weights a and b, must fit into 16 bits with a sign."""
    small = quantize(chunks[1])
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in small.graph.initializer
        if tensor.data_type == TensorProto.INT8
    ]
    matrices = [weight for weight in weights if weight.ndim == 2]
    assert len(matrices) == len(linear_layers(chunks[1]))
    for weight in matrices:
        assert 2 * 255 * np.abs(weight.astype(int)).max() < 2**15
