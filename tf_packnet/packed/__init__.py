"""The parts of `PackedModel`."""
