"""The words of the library: the stages of a task, and the choices left to its users, each named once."""

# The day and the night of a task.
TRAIN, PRUNE_RETRAIN = "train", "prune+retrain"
STAGES = (TRAIN, PRUNE_RETRAIN)

# How weights that a task gave back start the next one: at 0 (Mallya & Lazebnik 2018), as they were when pruned, or
# drawn afresh from the layer's initializer.
FREED_WEIGHTS = ("zero", "keep", "reinit")

# One unpruned head a task (Mallya & Lazebnik 2018), or one head that is masked and pruned like the rest.
HEADS = ("per_task", "shared")

# Biases: trained by task 1, then frozen (Mallya & Lazebnik 2018), or one copy a task.
BIAS_POLICIES = ("first_task", "per_task")

# How a prune round's count is shared between layers; see `tf_packnet.pruning.ranking`.
PRUNE_SCOPES = ("layer", "global", "erk")

# Pretrained weights, where they are nobody's ("task 0"): every task starts its free weights from them. What a task
# prunes of them is 0 for it; or goes back to the pretrained value, which all tasks see where no other weight stands.
PRETRAINED = ("prunable", "visible")
