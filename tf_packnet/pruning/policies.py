"""The permitted values of the library's options, and the names of the stages of a task."""

# The two stages of a task: training, then iterative pruning with retraining.
TRAIN, PRUNE_RETRAIN = "train", "prune+retrain"
STAGES = (TRAIN, PRUNE_RETRAIN)

# How a prune round ranks the weights: by magnitude, or by a score computed from data, see `training.importance`.
MAGNITUDE, ACTIVATION, TAYLOR = CRITERIA = ("magnitude", "activation", "taylor")

# Learning rate schedules of the second stage, see `RetrainingRate`. Those in RESTARTING restart in each prune round.
CONSTANT, ADAPTIVE = "constant", "adaptive"
RESTARTING = ("linear_restarts", "cosine_restarts", ADAPTIVE)
RETRAIN_RATES = (CONSTANT, "linear", "cosine", *RESTARTING)

# Initial values of the free weights in the next task: 0 (Mallya & Lazebnik 2018), their values when they were pruned,
# or new values from the layer's initializer.
FREED_WEIGHTS = ("zero", "keep", "reinit")

# One unpruned head per task (Mallya & Lazebnik 2018), or one masked head that is pruned like all other layers.
HEADS = ("per_task", "shared")

# Biases and normalization: trained by task 1, then frozen (Mallya & Lazebnik 2018), or one copy per task.
BIAS_POLICIES = ("first_task", "per_task")
# The policy of all weights of a layer in a head: not pruned, one copy per task, initialized with new random values.
HEAD = "head"

# Pretrained weights that belong to no task ("task 0"): every task starts its free weights from the pretrained values.
# `prunable`: a pruned weight is 0. `visible`: a pruned weight returns to its pretrained value, which all tasks see
# wherever they own no weight.
PRETRAINED = ("prunable", "visible")
