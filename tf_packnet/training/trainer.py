"""Overrides Keras's `compile`, `fit` and `train_step` for packed models. The package docstring explains the parts."""

import contextlib
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.structure import overrides
from tf_packnet.system.keras_internals import Functional, build_symbolically, is_built, learning_rate_of, resume_at
from tf_packnet.tasks.batches import ResidentBatches, StreamedBatches
from tf_packnet.training import acceleration, fleet, freeze_guard, kernels, optimizers, replicas, step_errors
from tf_packnet.training.batch_sizes import trace_once
from tf_packnet.training.fit_checks import backup_of, check_batches, check_trained, title_of, with_first
from tf_packnet.training.fit_guard import FitGuard, check_steps
from tf_packnet.training.gradient_step import assign_all, assigned_in_forward_pass, gradient_step
from tf_packnet.training.multi_step import DeviceExamples, batch_of_call, take_steps
from tf_packnet.training.step_check import StepCheck, StepRecord, all_finite


class PackedTrainer(Functional):
    """A Keras functional model with masked layers, with fast and checked gradient steps.

    Attributes:
        xla: What XLA compiles of a gradient step: `step`, `update` or `off`, see `tf_packnet.training.acceleration`.
        device_examples: The `DeviceExamples` of the last `fit` with `ResidentBatches`; None before.
        step_record: The `StepRecord` of the compiled steps.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        object.__setattr__(self, "_shows_one_device", False)
        super().__init__(*args, **kwargs)
        self.xla = acceleration.OFF
        hidden = {"device_examples": None, "_traced_optimizers": (), "_requested_jit_compile": "auto"}
        self.__dict__.update(hidden, step_record=StepRecord())  # Keras does not track them

    def compile(self, *args: Any, jit_compile: bool | str | None = "auto", **kwargs: Any) -> None:
        """Configure the model for training, like `keras.Model.compile`.

        Args:
            *args: As for Keras.
            jit_compile: True compiles whole gradient steps with XLA, False (or None) nothing. `auto` compiles whole
                steps; if XLA on CPU is slow with the layers, such as convolutions, only masks and optimizer, or
                nothing if there are few weights. The result is in `model.xla`.
            **kwargs: As for Keras.

        Raises:
            ArgumentError: If `jit_compile` is anything else.
        """
        own_step = overrides.is_overridden(self, "train_step")
        if jit_compile == "auto":
            eager = kwargs.get("run_eagerly", False)
            xla = acceleration.OFF if eager else self._fastest_xla()
        elif jit_compile in (True, False, None):
            xla = acceleration.STEP if jit_compile else acceleration.OFF
        else:
            raise ArgumentError("jit_compile", "True, False or 'auto'", jit_compile)
        with warnings.catch_warnings():
            if jit_compile == "auto":
                warnings.filterwarnings("ignore", "Model doesn't support `jit_compile=True`")
            if overrides.accepts(super().compile, "jit_compile"):
                super().compile(*args, jit_compile=xla == acceleration.STEP, **kwargs)
            else:  # a `compile` of the user's class
                super().compile(*args, **kwargs)
                self.jit_compile = xla == acceleration.STEP
        if xla == acceleration.STEP and not self.jit_compile:  # a layer or op determinism does not support it
            xla = acceleration.UPDATE if jit_compile == "auto" else acceleration.OFF
        if xla == acceleration.UPDATE and own_step:  # `UPDATE` needs our `gradient_step`
            xla = acceleration.OFF
        if xla == acceleration.STEP and not acceleration.can_compile_replicas(self):
            xla = acceleration.UPDATE
        if not replicas.divides_batches(self) and acceleration.is_distributed(self):  # Keras's own steps
            xla = acceleration.OFF
        self.xla = xla
        lifecycle.records(self).forget_functions()
        object.__setattr__(self, "_requested_jit_compile", jit_compile)

    def _fastest_xla(self) -> str:
        return acceleration.fastest(self)

    def get_compile_config(self) -> dict[str, Any]:
        """Return the configuration to save: Keras's, with `jit_compile` as requested: `auto` depends on the machine."""
        config = super().get_compile_config()
        if not config:
            return config
        overridden = overrides.is_overridden(self, "compile", "get_compile_config")
        if not overridden and config["optimizer"] is not None and self.optimizer is not None:
            # It may have been replaced since `compile`.
            optimizer = self.optimizer
            wrapped = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
            same = type(optimizer).__name__ == config["optimizer"]["class_name"]
            optimizer = optimizer if same or not wrapped else optimizer.inner_optimizer
            serialized = keras.saving.serialize_keras_object(optimizer)
            serialized.pop("shared_object_id", None)  # an address in memory, because Keras has serialized it before
            config = {**config, "optimizer": serialized}
        return {**config, "jit_compile": self._requested_jit_compile}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile a loaded model. Keras's own method does not if the class overrides `compile`."""
        if overrides.is_overridden(self, "compile", "compile_from_config"):
            super().compile_from_config(config)
            return
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, x: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """Train the model, like `keras.Model.fit`.

        Args:
            x: As for Keras, or `ResidentBatches` or `StreamedBatches`.
            **kwargs: As for Keras.

        Returns:
            The logs of all epochs, including those before a `fit` resumed with `tp.EpochBackup`.

        Raises:
            ArgumentError: If arguments do not fit together, or the model has a trainable variable that no task owns.
            DivergedError: If the data of a step are bad, or the loss, a gradient or a weight is not finite.
            StepError: If TensorFlow failed in a step, for example because of shapes that do not fit.
            FreezeError: If a committed task has changed before or during the `fit`.
        """
        resume_at(self, None)  # otherwise Keras would begin where an earlier `fit` resumed
        backup = backup_of(kwargs.get("callbacks"))
        first_epoch, resident = kwargs.get("initial_epoch", 0), isinstance(x, ResidentBatches)
        if backup is not None:
            kwargs["initial_epoch"] = backup.initial_epoch(self)
        if isinstance(x, StreamedBatches):
            check_batches(self, x, kwargs)
            x, kwargs["steps_per_epoch"] = self._prepare(x, kwargs.get("initial_epoch", 0))
            kwargs["shuffle"] = False  # they are already shuffled
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # Keras warns about its own default
        check_trained(self)
        self._build_optimizer()
        guard = FitGuard(title_of(kwargs.get("callbacks")))
        kwargs["callbacks"] = with_first(guard, kwargs.get("callbacks"))
        try:
            with (
                guard.errors_reported(),
                freeze_guard.guarded(self),
                self._learning_rates_restored(),
                self._on_one_device(),
                fleet.joined(self, resident),
            ):
                history = super().fit(x, **kwargs)
        finally:  # also after an error, wait until the last complete epoch is on disk
            self.step_record.guarded = False
            if backup is not None:
                backup.wait()
        if backup is not None:
            epochs_done = len(backup.history.get("loss", []))
            history.history, history.epoch = backup.history, list(range(first_epoch, first_epoch + epochs_done))
        return history

    @contextlib.contextmanager
    def _learning_rates_restored(self) -> Iterator[None]:
        """Restores, after the block, learning rates that a callback has changed; drops outdated compiled steps."""
        used = optimizers.all_of(self)
        # Keras traces a step once, and would continue to use an optimizer or a schedule that has been replaced since.
        current = [part for each in used for part in (each, learning_rate_of(optimizers.holder_of_rate(each)))]
        if any(new is not traced for new, traced in itertools.zip_longest(current, self._traced_optimizers)):
            self.train_function = None
        object.__setattr__(self, "_traced_optimizers", current)
        restore_rates = [optimizers.remember_rate(each) for each in used]
        try:
            yield
        finally:
            with lifecycle.strategy_scope(self):
                if sum(restore() for restore in restore_rates):  # not `any`: every function must be called
                    self.train_function = None

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Take one gradient step, like `keras.Model.train_on_batch`.

        Raises:
            DivergedError: If the data are bad, or the loss or a gradient is not finite. The step has changed nothing.
            StepError: If TensorFlow failed in the step.
        """
        self._build_optimizer()
        self.step_record.problem.assign(0)
        with step_errors.reported("train_on_batch"), self._on_one_device():
            logs = super().train_on_batch(*args, **kwargs)
        check_steps(self, "train_on_batch: ")
        return logs

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the model, like `keras.Model.evaluate`, on all replicas of its distribution strategy."""
        with step_errors.reported("evaluate"), self._on_one_device():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict, like `keras.Model.predict`, on the replicas of this worker."""
        with step_errors.reported("predict"), self._on_one_device():
            return super().predict(*args, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one batch, like `keras.Model.test_on_batch`."""
        with step_errors.reported("test_on_batch"), self._on_one_device():
            return super().test_on_batch(*args, **kwargs)

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Predict one batch, like `keras.Model.predict_on_batch`."""
        with step_errors.reported("predict_on_batch"), self._on_one_device():
            return super().predict_on_batch(*args, **kwargs)

    @property
    def distribute_strategy(self) -> tf.distribute.Strategy:
        """The strategy in whose scope the model was created, or TensorFlow's default strategy.

        In `fit`, `evaluate` and `predict` it hides the replicas from Keras, see `tf_packnet.training.replicas`.
        """
        strategy = super().distribute_strategy
        return replicas.OneDevice(strategy) if self._shows_one_device else strategy

    @contextlib.contextmanager
    def _on_one_device(self, shown: bool | None = None) -> Iterator[None]:
        before = self._shows_one_device
        object.__setattr__(self, "_shows_one_device", replicas.divides_batches(self) if shown is None else shown)
        try:
            yield
        finally:
            object.__setattr__(self, "_shows_one_device", before)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras builds metrics from the first batch. `_prepare` returns no batch, and has already built them.
        if not self._shows_one_device or not is_built(self):
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Take one gradient step on a batch, or the steps of one call (see `tf_packnet.training.multi_step`)."""
        check_trained(self)  # again, because a callback may have changed it
        if self._shows_one_device:
            self._train_on_replicas(data)
            return self.get_metrics_result()
        if acceleration.is_distributed(self):
            return super().train_step(data)
        self._build_optimizer()
        if isinstance(data, dict) and "steps" in data:  # the inputs were checked before the fit
            undo = self.xla == acceleration.STEP or overrides.is_overridden(self, "train_step")
            return self._steps_with_undo(data) if undo else take_steps(self, data, self._one_step)
        # Not compiled, because reductions are slow in XLA on CPU.
        inputs_finite = all_finite(keras.utils.unpack_x_y_sample_weight(data)[0])
        if overrides.is_overridden(self, "train_step"):
            return self._steps_with_undo(data, inputs_finite)
        return self._compiled_steps(self._one_step)(data, inputs_finite)

    def _train_on_replicas(self, data: Any) -> None:
        if isinstance(data, dict) and "steps" in data:
            replicas.take_steps(self, data, functools.partial(batch_of_call, self, data["scale"]))
        else:
            replicas.train_step(self, data)

    def _one_step(self, data: Any, inputs_finite: tf.Tensor | None = None) -> dict[str, Any]:
        if not overrides.is_overridden(self, "train_step"):
            return gradient_step(self, data, inputs_finite)
        # The step of the user's class, whose loss is in its logs.
        logs = super().train_step(data)
        loss = logs.get("loss") if isinstance(logs, dict) else None
        weights = [tf.convert_to_tensor(variable) for variable in self.trainable_variables]
        check = StepCheck()
        if inputs_finite is not None:
            check.inputs(inputs_finite)
        self.step_record.add(check.problem(tf.constant(0.0) if loss is None else loss, weights))
        return logs

    def _compiled_steps(self, steps: Callable[..., Any]) -> Callable[..., Any]:
        return kernels.compiled(steps) if self.xla == acceleration.STEP else steps

    def _steps_with_undo(self, data: Any, inputs_finite: tf.Tensor | None = None) -> dict[str, Any]:
        """Take steps that change the model even if a check fails, and undo them in that case.

        If XLA compiles many steps in one call, discarding the changes in each step would take a tenth of their time.

        Args:
            data: A batch, or a call for `take_steps`.
            inputs_finite: For a batch, whether its inputs are finite, a `bool` scalar.

        Returns:
            The metrics or logs, by name.
        """
        slots = [variable for optimizer in optimizers.all_of(self) for variable in optimizer.variables]
        changing = [*self.trainable_variables, *assigned_in_forward_pass(self), *slots]
        before = [tf.convert_to_tensor(variable) for variable in changing]
        if inputs_finite is None:
            steps = self._compiled_steps(functools.partial(take_steps, self, step=self._one_step))
            logs = steps(data)
        else:
            logs = self._compiled_steps(self._one_step)(data, inputs_finite)

        def undo() -> bool:
            assign_all(changing, before)
            if inputs_finite is None:  # take the steps before the one that failed again
                problem = tf.convert_to_tensor(self.step_record.problem)
                self.step_record.problem.assign(0)
                steps({**data, "steps": tf.cast(self.step_record.taken, data["steps"].dtype)})
                self.step_record.problem.assign(problem)
            return True

        tf.cond(tf.equal(self.step_record.problem, 0), lambda: True, undo)
        return logs

    def _build_optimizer(self) -> None:
        if self.optimizer is not None and not self.optimizer.built:
            with lifecycle.strategy_scope(self):
                self.optimizer.build(self.trainable_variables)

    def make_train_function(self, force: bool = False) -> None:
        """Make the training function, like Keras's, without XLA: `train_step` decides what XLA compiles."""
        with self._without_xla(force):
            super().make_train_function(force)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluate one batch, like Keras's, with masked kernels computed by XLA in one pass."""
        if not self._shows_one_device:
            return self._evaluate_rows(data)
        replicas.evaluation_step(self, data, self._evaluate_rows)
        return self.get_metrics_result()

    def _evaluate_rows(self, data: Any) -> dict[str, Any]:
        with self._kernels_in_one_pass():
            return super().test_step(data)

    def predict_step(self, data: Any) -> Any:
        """Predict one batch, like Keras's, with masked kernels computed by XLA in one pass."""
        if not self._shows_one_device:
            return self._predict_rows(data)
        return replicas.prediction_step(self, data, self._predict_rows)

    def _predict_rows(self, data: Any) -> Any:
        with self._kernels_in_one_pass():
            return super().predict_step(data)

    def _kernels_in_one_pass(self) -> contextlib.AbstractContextManager:
        weights = kernels.worth_selecting_first(self)
        if not weights:
            return contextlib.nullcontext()
        return kernels.substituted(weights, kernels.selected(weights, self.xla, inline=False))

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        # On one device the last logs are up to date. Keras would compute them again, twice per epoch in 0.5 ms each.
        if isinstance(logs, dict) and logs and (self._shows_one_device or not acceleration.is_distributed(self)):
            return logs
        return super()._get_metrics_result_or_logs(logs)

    def make_test_function(self, force: bool = False) -> None:
        """Make the evaluation function, like Keras's, without XLA, which would compile it for each size of data."""
        with self._without_xla(force):
            super().make_test_function(force)

    def make_predict_function(self, force: bool = False) -> None:
        """Make the prediction function, like Keras's, without XLA: see `make_test_function`."""
        with self._without_xla(force):
            super().make_predict_function(force)
        trace_once(self)

    @contextlib.contextmanager
    def _without_xla(self, force: bool) -> Iterator[None]:
        if force:
            lifecycle.records(self).compiled.clear()
        jit_compile, self.jit_compile = self.jit_compile, False
        try:
            yield
        finally:
            self.jit_compile = jit_compile

    def _prepare(self, batches: StreamedBatches, first_epoch: int) -> tuple[Any, int]:
        """Return the data set for Keras to iterate over, and its number of elements per epoch."""
        if self.steps_per_execution != 1:
            expected = "1, because these batches already take many steps per call"
            raise ArgumentError("steps_per_execution", expected, self.steps_per_execution)
        if acceleration.is_distributed(self) and not replicas.divides_batches(self):
            if isinstance(batches, ResidentBatches):
                expected = "StreamedBatches in a distribution strategy with a train_step or metrics of your own"
                raise ArgumentError("x", expected, type(batches).__name__)
            return batches.single_batches(first_epoch), batches.steps
        count = self.distribute_strategy.num_replicas_in_sync
        if batches.batch_size < count:
            raise ArgumentError("batch_size", f"at least the {count} replicas", batches.batch_size)
        shapes = [(batches.batch_size, *each.shape[1:]) for each in (batches.images, batches.labels)]
        # Builds metrics and optimizer: variables cannot be created in a compiled loop.
        x, y = keras.KerasTensor(shapes[0]), keras.KerasTensor(shapes[1], dtype=batches.labels.dtype.name)
        with lifecycle.strategy_scope(self):
            if isinstance(batches, ResidentBatches):
                self._put_on_device(batches)
            build_symbolically(self, x, y)
        return batches.dataset(first_epoch), batches.calls

    def _put_on_device(self, batches: ResidentBatches) -> None:
        if self.device_examples is not None and self.device_examples.fits(batches):
            self.device_examples.load(batches)
        else:  # hidden from Keras's attribute tracking: they are not part of the model
            object.__setattr__(self, "device_examples", DeviceExamples(batches))
            self.train_function = None
