"""Parts of `PackedModel`: heads of new tasks, the user's model class, safe loading, the ownership table."""
