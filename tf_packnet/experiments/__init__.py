"""The paper's experiments: many runs, compared in tables, figures and a report. Imports no TensorFlow itself."""
