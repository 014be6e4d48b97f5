"""Writes ONNX files."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.export.endpoint import Endpoint
from tf_packnet.system.extras import require_extra
from tf_packnet.system.keras_internals import adapt_tf2onnx


def check_installed() -> None:
    """Raise MissingExtraError unless ONNX files can be written."""
    require_extra("format='onnx'", "onnx", "tf2onnx", extra="onnx")


def write(endpoint: Endpoint, path: Path) -> None:
    """Convert an endpoint and write the file `path`. Class names are in the metadata of the file.

    Raises:
        ArgumentError: If ONNX cannot represent the network.
    """
    import onnx
    import tf2onnx

    adapt_tf2onnx()
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # errors are raised below
    logging.getLogger("tf2onnx.tfonnx").setLevel(logging.CRITICAL)
    function = endpoint.signature(endpoint.function())
    try:
        model, _ = tf2onnx.convert.from_function(function, endpoint.specs, custom_op_handlers={"Erfc": (_erfc, [])})
        onnx.checker.check_model(model)  # tf2onnx leaves unknown operations in place
    except Exception as error:  # raised by the converter, of various types
        expected = f"a format that can represent this network; ONNX cannot: {first_line(error)}"
        raise ArgumentError("format", expected, "onnx") from error
    for name, names in endpoint.class_names.items():
        key = "class_names" if len(endpoint.output_names) == 1 else f"class_names_{name}"
        model.metadata_props.add(key=key, value="\n".join(names))
    path.write_bytes(model.SerializeToString())


def _erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """Convert `erfc(x)`, which the exact GELU uses and tf2onnx does not support, to `1 - erf(x)`."""
    node.type = "Erf"
    one = context.make_const(f"{name}_one", np.ones((), np.float32))
    inputs = [one.output[0], node.output[0]]
    context.insert_new_node_on_output("Sub", node.output[0], inputs=inputs, name=f"{name}_complement")
