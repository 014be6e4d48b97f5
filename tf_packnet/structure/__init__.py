"""The structure of Keras models: paths of layers, copies, checks before packing, roles, heads, other state."""
