"""Fast training of packed models, and the checks around it. Start with `trainer`.

`PackedTrainer` in `trainer` overrides Keras's `compile`, `fit` and `train_step`; everything else here is used from it.

1. `fit_checks` checks the arguments of a `fit` before it takes any time: shapes, labels, callbacks.
2. `freeze_guard` checks before and after the `fit` that no committed task has changed.
3. `acceleration` chooses what XLA compiles: the whole gradient step (`STEP`), only the masks and the optimizer
   (`UPDATE`, for convolutions on CPU, which are faster in oneDNN), or nothing (`OFF`).
4. `gradient_step` is one gradient step. It computes the masked kernels, substitutes them into the layers, runs the
   forward and backward pass, masks the gradients, and applies the optimizer. So each kernel is masked in one pass
   before the layers and one after them.
5. `multi_step` takes many gradient steps in one call of the compiled function, because Keras needs 2 ms per call. The
   examples of a task are copied to the device once (`ResidentBatches`), or copied for each call (`StreamedBatches`);
   see `tf_packnet.tasks.batches` for both.
6. `kernels` computes masked kernels: once per step, or, if nothing but the candidates can change, once per call, in
   place in the trainable variables.
7. `step_check` checks every gradient step inside the compiled function: inputs, labels, embedding ids, loss,
   gradients. A step that fails a check changes nothing but metrics. The first `Problem` is kept in a variable, and no
   step is taken after it.
8. `fit_guard` is a callback that `fit` adds first. It reads that variable about once per second and at the end of
   each epoch, and raises `DivergedError`. It also keeps a copy of the weights and restores it if they are no longer
   finite. `step_errors` turns errors of TensorFlow in a step into a `StepError` of one line.

9. `replicas` does the same in a distribution strategy: each replica computes the gradients of its rows of a batch with
   `gradient_step.forward_backward`, the gradients are summed, and each replica applies the optimizer to the sums. What
   they exchange is in `exchange`.

Two more modules are used by callbacks as well. `optimizers` resets Keras optimizers, clears slots of pruned weights and
restores learning rates. `training_state` captures and restores all that a `fit` needs to resume, for `tp.EpochBackup`.

Example: `packed.fit(task.training_batches(seed, resident=True), epochs=72)` on an MLP. `fit` copies the examples to the
device. Keras traces `train_step` once, and calls the traced function once for up to 512 gradient steps. In it XLA has
compiled `multi_step.take_steps`, which runs `gradient_step` in a loop. After each epoch `FitGuard` checks the recorded
problem, the loss and the weights.

Rules that the code relies on:

- Frozen values, owner maps and other state of masked layers are non-trainable variables: no optimizer changes them.
- Variables that are not part of the model, such as resident examples, are hidden from Keras's attribute tracking with
  `object.__setattr__`.
- No `int32` variable is read in a compiled step: TensorFlow keeps those in host memory.

`docs/performance.md` has the measurements.
"""
