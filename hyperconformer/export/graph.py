"""From a module to an ONNX graph."""

import logging
import pathlib
import warnings
from typing import Any

import torch

from hyperconformer.core.extras import import_extra

# Gelu is one operator from 20 on.
OPSET = 20


def to_onnx(graph: Any) -> Any:
    """Record a graph's module.

    Arguments
    ---------
    graph : OfflineGraph or StreamingGraph
        With ``inputs``, ``outputs``, ``example()`` and ``dynamic_shapes()``.

    Returns
    -------
    onnx.ModelProto
        Weights inside.

    Raises
    ------
    ValueError
        If PyTorch cannot record the module; the message says why.
    MissingExtraError
        If the packages of ``[export]`` are missing.
    """
    import_extra("onnxscript", "export", "ONNX graphs")
    # It says at each start which packages of others are missing.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            # Not left to torch.onnx, which would fix a size that it finds hard.
            recorded = torch.export.export(
                graph.eval(), graph.example(), dynamic_shapes=graph.dynamic_shapes()
            )
            program = torch.onnx.export(
                recorded,
                dynamo=True,
                opset_version=OPSET,
                input_names=graph.inputs,
                output_names=graph.outputs,
                verbose=False,
            )
    # Of many kinds, for as many reasons.
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        first = str(cause).strip().splitlines()[0]
        raise ValueError(
            f"PyTorch cannot export this model: {type(cause).__name__}: {first}"
        ) from error
    finally:
        logger.setLevel(level)
    assert program is not None  # It is for dynamo=True.
    return program.model_proto


def make_optional(model: Any, name: str, source: str) -> None:
    """Let clients leave out the lengths: utterances then last as long as the batch.

    Arguments
    ---------
    model : onnx.ModelProto
        Changed in place.
    name : str
        The (B,) int64 input of lengths.
    source : str
        The (B, N) input whose N they default to.
    """
    onnx = import_extra("onnx", "export", "ONNX graphs")
    helper, graph = onnx.helper, model.graph
    given = f"{name}_or_default"
    for node in graph.node:
        for index, used in enumerate(node.input):
            if used == name:
                node.input[index] = given
    entry = next(entry for entry in graph.input if entry.name == name)
    entry.type.tensor_type.shape.dim[0].dim_param = f"{name}_given"
    # An input with a value of the same name need not be fed. -1 = not given.
    graph.initializer.append(
        helper.make_tensor(name, onnx.TensorProto.INT64, [1], [-1])
    )
    constants = {f"{name}_0": [0], f"{name}_1": [1], f"{name}_2": [2]}
    for constant, value in constants.items():
        graph.initializer.append(
            helper.make_tensor(constant, onnx.TensorProto.INT64, [1], value)
        )
    first = [
        helper.make_node("Shape", [source], [f"{name}_shape"]),
        helper.make_node(
            "Slice", [f"{name}_shape", f"{name}_0", f"{name}_1"], [f"{name}_batch"]
        ),
        helper.make_node(
            "Slice", [f"{name}_shape", f"{name}_1", f"{name}_2"], [f"{name}_all"]
        ),
        helper.make_node("Less", [name, f"{name}_0"], [f"{name}_missing"]),
        helper.make_node(
            "Where", [f"{name}_missing", f"{name}_all", name], [f"{name}_each"]
        ),
        helper.make_node("Expand", [f"{name}_each", f"{name}_batch"], [given]),
    ]
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def save(model: Any, path: pathlib.Path, metadata: dict[str, Any]) -> None:
    """Check a graph and write it, with its metadata.

    Arguments
    ---------
    model : onnx.ModelProto
        The graph; its metadata are replaced.
    path : pathlib.Path
        Where to.
    metadata : dict
        Values of any type; they become strings.
    """
    onnx = import_extra("onnx", "export", "ONNX graphs")
    onnx.helper.set_model_props(model, {k: str(v) for k, v in metadata.items()})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
