"""Atomic file writes, safe archives, signals, a quiet start of TensorFlow, and Keras's private modules."""
