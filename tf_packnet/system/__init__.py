"""Files, archives, signals, start-up output, and Keras's private modules."""
