"""Structure of Keras models: paths of layers, copies, checks before packing, roles of layers, heads, other state."""
