"""What the paper asks of the library. Importing this package alone does not start TensorFlow."""
