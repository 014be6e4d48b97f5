"""What a model is made of: the places of its layers, what each becomes in a pack, where its outputs come from."""
