"""Weights of 8 bits."""

import logging
import pathlib
import tempfile
from typing import Any

from hyperconformer.core.extras import import_extra


def quantize(model: Any) -> Any:
    """Store the weights of the linear layers as 8-bit integers, per output channel.

    They use 7 bits: with 8, sums of two products overflow without a word on processors
    that lack VNNI (ONNX Runtime computes them in 16 bits there).

    Inputs of these layers are quantised while the graph runs. Everything else stays in
    float32: the spectra, the convolutions of the front end and of the encoder, and
    the mixture of HyperMixing, whose weights are no matrix but one for each head.

    Arguments
    ---------
    model : onnx.ModelProto
        In float32; not changed.

    Returns
    -------
    onnx.ModelProto
    """
    onnx = import_extra("onnx", "export", "ONNX graphs")
    tools = import_extra("onnxruntime.quantization", "export", "8-bit weights")
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "float.onnx")
        target = pathlib.Path(folder, "int8.onnx")
        source.write_bytes(model.SerializeToString())
        logging.disable(logging.WARNING)  # It recommends what changes nothing here.
        try:
            tools.quantize_dynamic(
                source,
                target,
                per_channel=True,
                weight_type=tools.QuantType.QInt8,
                reduce_range=True,
                nodes_to_quantize=linear_layers(model),
            )
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(str(target))


def linear_layers(model: Any) -> list[str]:
    """Names of the nodes that multiply frames with the matrix of a linear layer.

    Arguments
    ---------
    model : onnx.ModelProto
        In float32.

    Returns
    -------
    list of str
    """
    matrices = {t.name for t in model.graph.initializer if len(t.dims) == 2}
    kinds = [node.op_type for node in model.graph.node]
    # Nodes stand in the order of computing: what precedes the front end are features.
    start = kinds.index("Conv") if "Conv" in kinds else 0
    return [
        node.name
        for node in list(model.graph.node)[start:]
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in matrices
    ]
