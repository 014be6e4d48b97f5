"""Access to the system and to libraries: atomic file writes, safe archives, signals, locks, and Keras's internals."""
