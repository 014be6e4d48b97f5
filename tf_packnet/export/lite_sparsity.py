"""Stores the weights of a LiteRT file without their zeros, in LiteRT's own sparse format.

A sparse weight is expanded by the operation `DENSIFY`, once for each interpreter. Delegates such as XNNPACK treat its
output as a constant, so that the other operations compute as before.
"""

import math
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

# Bytes that the entries of one more tensor, buffer and operation take in a file.
_OVERHEAD = 512
# The types that DENSIFY expands.
_DTYPES = {schema.TensorType.FLOAT32: "float32", schema.TensorType.FLOAT16: "float16", schema.TensorType.INT8: "int8"}
# The operations whose weights XNNPACK expands and dequantizes itself.
_PRODUCTS = (
    schema.BuiltinOperator.FULLY_CONNECTED,
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.TRANSPOSE_CONV,
)
_VECTORS = {
    "uint8": (schema.SparseIndexVector.Uint8Vector, schema.Uint8VectorT),
    "uint16": (schema.SparseIndexVector.Uint16Vector, schema.Uint16VectorT),
    "int32": (schema.SparseIndexVector.Int32Vector, schema.Int32VectorT),
}


def without_zeros(content: bytes) -> bytes:
    """Return a LiteRT file with the same outputs as `content`, bit by bit, that stores weights without zeros."""
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for graph in model.subgraphs:
        _widen(model, graph)
        unsafe = {operator.inputs[0] for operator in _dequantized_for_others(model, graph)}
        densify = []
        for number, tensor in enumerate(list(graph.tensors)):
            sparse = None if number in unsafe or number in graph.outputs else _sparse(model, tensor)
            if sparse is not None:
                graph.tensors.append(sparse)
                tensor.buffer = 0  # computed, not stored
                densify.append(_densify(model, len(graph.tensors) - 1, number))
        graph.operators = densify + list(graph.operators)
    _drop_unused_buffers(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _dequantized_for_others(model: Any, graph: Any) -> list[Any]:
    """Return the operations that dequantize a constant for others than `_PRODUCTS`.

    XNNPACK computes wrong values for these if the constant is sparse (measured with TensorFlow 2.21).
    """
    return [
        operator
        for operator in graph.operators
        if _code(model, operator) == schema.BuiltinOperator.DEQUANTIZE
        and any(operator.outputs[0] in user.inputs and _code(model, user) not in _PRODUCTS for user in graph.operators)
    ]


def _widen(model: Any, graph: Any) -> None:
    """Replace `float16` constants that cannot be sparse by `float32` ones, where these are smaller when sparse."""
    for operator in _dequantized_for_others(model, graph):
        constant, result = (graph.tensors[numbers[0]] for numbers in (operator.inputs, operator.outputs))
        values = _constant(model, constant)
        if values is not None and values.dtype == np.float16:
            wide = values.astype(np.float32)
            if min(_sparse_sizes(wide)) + _OVERHEAD < values.nbytes:
                result.buffer = _new_buffer(model, wide)
                graph.operators = [each for each in graph.operators if each is not operator]


def _constant(model: Any, tensor: Any) -> np.ndarray | None:
    """Return the value of a tensor, or None if it is not a constant, or of a type that cannot be sparse."""
    data, shape = model.buffers[tensor.buffer].data, [int(size) for size in tensor.shape]
    if data is None or tensor.type not in _DTYPES or math.prod(shape) <= 1 or tensor.sparsity is not None:
        return None
    return np.frombuffer(bytes(data), _DTYPES[tensor.type]).reshape(shape)


def _sparse_sizes(values: np.ndarray) -> list[int]:
    """Return the size of the sparse values in bytes, for each axis along which zeros can be left out."""
    index_bytes = [np.dtype(_index_dtype(size)).itemsize for size in values.shape]
    rows = [values.size // size for size in values.shape]
    count = np.count_nonzero(values)
    return [count * (values.itemsize + index) + 4 * each for index, each in zip(index_bytes, rows, strict=True)]


def _sparse(model: Any, tensor: Any) -> Any:
    """Return the sparse tensor of a constant, or None if it is not smaller."""
    values = _constant(model, tensor)
    if values is None:
        return None
    shape, sizes = values.shape, _sparse_sizes(values)
    axis = int(np.argmin(sizes))
    if sizes[axis] + _OVERHEAD >= values.nbytes:
        return None
    order = [each for each in range(len(shape)) if each != axis] + [axis]
    rows = values.transpose(order).reshape(-1, shape[axis])
    sparse = schema.TensorT()
    sparse.shape, sparse.type, sparse.name = tensor.shape, tensor.type, tensor.name + b"/sparse"
    sparse.buffer = _new_buffer(model, rows[rows != 0])
    sparse.sparsity = schema.SparsityParametersT()
    sparse.sparsity.traversalOrder = np.array(order, np.int32)
    sparse.sparsity.dimMetadata = [_dense_axis(shape[each]) for each in order[:-1]] + [_sparse_axis(rows)]
    return sparse


def _dense_axis(size: int) -> Any:
    axis = schema.DimensionMetadataT()
    axis.format, axis.denseSize = schema.DimensionType.DENSE, size
    return axis


def _sparse_axis(rows: np.ndarray) -> Any:
    """Return the positions of the values in each row."""
    axis = schema.DimensionMetadataT()
    axis.format = schema.DimensionType.SPARSE_CSR
    ends = np.cumsum(np.count_nonzero(rows, axis=1))
    axis.arraySegmentsType, axis.arraySegments = _vector(np.concatenate([[0], ends]), "int32")
    axis.arrayIndicesType, axis.arrayIndices = _vector(np.nonzero(rows)[1], _index_dtype(rows.shape[1]))
    return axis


def _vector(numbers: np.ndarray, dtype: str) -> tuple[int, Any]:
    kind, vector_class = _VECTORS[dtype]
    vector = vector_class()
    vector.values = numbers.astype(dtype)
    return kind, vector


def _index_dtype(size: int) -> str:
    return "uint8" if size <= 2**8 else "uint16" if size <= 2**16 else "int32"


def _code(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode)  # files of old converters only have the second one


def _densify(model: Any, sparse: int, dense: int) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex = _densify_code(model)
    operator.inputs, operator.outputs = np.array([sparse], np.int32), np.array([dense], np.int32)
    operator.builtinOptionsType, operator.builtinOptions = (
        schema.BuiltinOptions.DensifyOptions,
        schema.DensifyOptionsT(),
    )
    return operator


def _densify_code(model: Any) -> int:
    """Return the index of DENSIFY among the operation codes of the file. Add it if necessary."""
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == schema.BuiltinOperator.DENSIFY:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DENSIFY
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _new_buffer(model: Any, values: np.ndarray) -> int:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _drop_unused_buffers(model: Any) -> None:
    users = [tensor for graph in model.subgraphs for tensor in graph.tensors] + list(model.metadata or [])
    used = sorted({0, *(user.buffer for user in users)})  # buffer 0 is the empty one
    new = {buffer: index for index, buffer in enumerate(used)}
    for user in users:
        user.buffer = new[user.buffer]
    model.buffers = [model.buffers[buffer] for buffer in used]
