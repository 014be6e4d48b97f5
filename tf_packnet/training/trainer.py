"""How a packed model computes when it is trained: what XLA compiles, and how the examples reach it."""

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
from tf_packnet.system.keras_internals import Functional
from tf_packnet.tasks.batches import ResidentBatches, StreamedBatches
from tf_packnet.training import acceleration, freeze_guard, kernels, optimizers
from tf_packnet.training.fit_checks import backup_of, check_batches_alone, check_trained, title_of, with_first
from tf_packnet.training.fit_guard import FitGuard, check_steps
from tf_packnet.training.gradient_step import assign_all, gradient_step, moving_state
from tf_packnet.training.resident import DeviceExamples, take_steps
from tf_packnet.training.step_check import StepCheck, StepRecord, all_finite


class PackedTrainer(Functional):
    """A Keras model with masked layers whose gradient steps cost little more than their matrix products.

    Attributes:
        xla: What XLA compiles of a gradient step: `step`, `update` or `off`, see `tf_packnet.training.acceleration`.
        device_examples: The examples that lie on the device, once `fit` was given `ResidentBatches`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.xla = acceleration.OFF
        # Past Keras's tracking: they are no part of the model.
        object.__setattr__(self, "device_examples", None)
        object.__setattr__(self, "step_record", StepRecord())
        object.__setattr__(self, "_stepped_by", ())
        object.__setattr__(self, "_jit_asked", "auto")

    def compile(self, *args, jit_compile: bool | str = "auto", **kwargs) -> None:
        """As `keras.Model.compile`.

        Args:
            *args: As for Keras.
            jit_compile: True compiles whole gradient steps with XLA, False nothing. `auto` compiles whole steps, but
                for convolutions on CPU: there masks and optimizer only. `model.xla` says what it came to.
            **kwargs: As for Keras.
        """
        own_step = overrides.is_overridden(self, "train_step")
        xla = {True: acceleration.STEP, False: acceleration.OFF}.get(jit_compile)
        if jit_compile == "auto":
            eager = kwargs.get("run_eagerly", False)
            xla = acceleration.OFF if eager else self._best_xla()
        with warnings.catch_warnings():
            if jit_compile == "auto":
                warnings.filterwarnings("ignore", "Model doesn't support `jit_compile=True`")
            if overrides.accepts(super().compile, "jit_compile"):
                super().compile(*args, jit_compile=xla == acceleration.STEP, **kwargs)
            else:  # the user's own
                super().compile(*args, **kwargs)
                self.jit_compile = xla == acceleration.STEP
        if xla == acceleration.STEP and not self.jit_compile:  # a layer, or op determinism, is against it
            xla = acceleration.UPDATE if jit_compile == "auto" else acceleration.OFF
        if xla == acceleration.UPDATE and own_step:  # that would be another step
            xla = acceleration.OFF
        self.xla = xla
        lifecycle.records(self).functions.clear()
        object.__setattr__(self, "_jit_asked", jit_compile)

    def _best_xla(self) -> str:
        return acceleration.choose(acceleration.is_convolutional(self), acceleration.is_distributed(self))

    def get_compile_config(self) -> dict[str, Any]:
        """As Keras's own, with `jit_compile` as it was asked for: another machine may choose otherwise."""
        config = super().get_compile_config()
        if not config:
            return config
        own = overrides.is_overridden(self, "compile", "get_compile_config")
        if not own and config["optimizer"] is not None and self.optimizer is not None:  # it may have been replaced
            optimizer = self.optimizer
            wrapped = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
            same = type(optimizer).__name__ == config["optimizer"]["class_name"]
            optimizer = optimizer if same or not wrapped else optimizer.inner_optimizer
            serialized = keras.saving.serialize_keras_object(optimizer)
            serialized.pop("shared_object_id", None)  # Keras has serialized it before; the number is an address
            config = {**config, "optimizer": serialized}
        return {**config, "jit_compile": self._jit_asked}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """As Keras's own, which leaves a model with a `compile` of its own uncompiled when it is loaded."""
        if overrides.is_overridden(self, "compile", "compile_from_config"):
            super().compile_from_config(config)
            return
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, x: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`, which takes `ResidentBatches` and `StreamedBatches` too.

        Raises:
            FreezeError: If a value that a task had committed is another one at the end.
        """
        self._initial_epoch = None  # where an earlier fit resumed, which Keras would do again
        backup = backup_of(kwargs.get("callbacks"))
        first_epoch = kwargs.get("initial_epoch", 0)
        if backup is not None:
            kwargs["initial_epoch"] = backup.initial_epoch(self)
        if isinstance(x, StreamedBatches):
            check_batches_alone(kwargs)
            x, kwargs["steps_per_epoch"] = self._prepare(x, kwargs.get("initial_epoch", 0))
            kwargs["shuffle"] = False  # it comes shuffled
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # Keras warns of its own default
        check_trained(self)
        self._build_optimizer()
        guard = FitGuard(title_of(kwargs.get("callbacks")))
        kwargs["callbacks"] = with_first(guard, kwargs.get("callbacks"))
        try:
            with freeze_guard.guarded(self), self._learning_rates_kept():
                history = super().fit(x, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            raise guard.failed(error) from error
        finally:  # whatever ended it, the last whole epoch is on disk
            self.step_record.guarded = False
            if backup is not None:
                backup.wait()
        if backup is not None:
            done = len(backup.history.get("loss", []))
            history.history, history.epoch = backup.history, list(range(first_epoch, first_epoch + done))
        return history

    @contextlib.contextmanager
    def _learning_rates_kept(self) -> Iterator[None]:
        every = optimizers.all_of(self)
        # Keras traces a step once. It would go on with an optimizer or a schedule that has been replaced since.
        stepped_by = [part for each in every for part in (each, optimizers.holder_of_rate(each)._learning_rate)]
        if any(now is not then for now, then in itertools.zip_longest(stepped_by, self._stepped_by)):
            self.train_function = None
        object.__setattr__(self, "_stepped_by", stepped_by)
        put_back = [optimizers.remembered_rate(each) for each in every]
        try:
            yield
        finally:
            with lifecycle.strategy_scope(self):
                if sum(each() for each in put_back):
                    self.train_function = None

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras's.

        Raises:
            DivergedError: If the data, the loss or the gradients are not finite or out of range; nothing has changed.
        """
        self._build_optimizer()
        self.step_record.problem.assign(0)
        logs = super().train_on_batch(*args, **kwargs)
        check_steps(self, "train_on_batch: ")
        return logs

    def train_step(self, data: Any) -> dict[str, Any]:
        """One gradient step on a batch, or the many of a call (see `tf_packnet.tasks.batches`)."""
        check_trained(self)  # again: a callback may have changed it since the fit began
        if acceleration.is_distributed(self):
            return super().train_step(data)
        self._build_optimizer()
        if isinstance(data, dict) and "steps" in data:  # whose inputs were checked before the fit
            undoable = self.xla == acceleration.STEP or overrides.is_overridden(self, "train_step")
            return self._undoable(data) if undoable else take_steps(self, data, self._one_step)
        # Uncompiled: XLA on CPU is slow to reduce.
        inputs_finite = all_finite(keras.utils.unpack_x_y_sample_weight(data)[0])
        if overrides.is_overridden(self, "train_step"):
            return self._undoable(data, inputs_finite)
        return self._compiled_steps(self._one_step)(data, inputs_finite)

    def _one_step(self, data: Any, inputs_finite: tf.Tensor | None = None) -> dict[str, Any]:
        if not overrides.is_overridden(self, "train_step"):
            return gradient_step(self, data, inputs_finite)
        # The step of the user's class. Its logs say whether its loss is finite.
        logs = super().train_step(data)
        loss = logs.get("loss") if isinstance(logs, dict) else None
        weights = [tf.convert_to_tensor(variable) for variable in self.trainable_variables]
        check = StepCheck(self.step_record.problem)
        if inputs_finite is not None:
            check.inputs(inputs_finite)
        check.result(tf.constant(0.0) if loss is None else loss, weights)
        return logs

    def _compiled_steps(self, steps: Callable[..., Any]) -> Callable[..., Any]:
        return kernels.compiled(steps) if self.xla == acceleration.STEP else steps

    def _undoable(self, data: Any, inputs_finite: tf.Tensor | None = None) -> dict[str, Any]:
        """The steps of a call that cannot choose whether their changes count; what is wrong is undone afterwards.

        In many steps that XLA compiles the choice would cost a tenth of their time.

        Args:
            data: A batch, or what `take_steps` takes.
            inputs_finite: Of a batch, whether its inputs are finite.
        """
        slots = [variable for optimizer in optimizers.all_of(self) for variable in optimizer.variables]
        changing = [*self.trainable_variables, *moving_state(self), *slots]
        before = [tf.convert_to_tensor(variable) for variable in changing]
        if inputs_finite is None:
            steps = self._compiled_steps(functools.partial(take_steps, self, step=self._one_step))
            logs = steps(data)
        else:
            logs = self._compiled_steps(self._one_step)(data, inputs_finite)

        def undo():
            assign_all(changing, before)
            if inputs_finite is None:  # the steps before the one that was wrong
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
        """As Keras's; what XLA compiles is decided in `train_step`."""
        with self._without_xla():
            super().make_train_function(force)

    def test_step(self, data: Any) -> dict[str, Any]:
        """As Keras's, with kernels that XLA chose in one pass."""
        with self._chosen_kernels():
            return super().test_step(data)

    def predict_step(self, data: Any) -> Any:
        """As Keras's, with kernels that XLA chose in one pass."""
        with self._chosen_kernels():
            return super().predict_step(data)

    def _chosen_kernels(self) -> contextlib.AbstractContextManager:
        weights = kernels.worth_choosing(self)
        return kernels.lent(weights, kernels.chosen(weights, self.xla)) if weights else contextlib.nullcontext()

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        # Keras asks the metrics again, since its steps may run ahead of each other. On one device the last logs are the
        # last: half a millisecond less, twice an epoch.
        alone = not acceleration.is_distributed(self)
        return logs if alone and isinstance(logs, dict) and logs else super()._get_metrics_result_or_logs(logs)

    def make_test_function(self, force: bool = False) -> None:
        """As Keras's, never compiled by XLA: splits differ in size, and each size would be compiled anew."""
        with self._without_xla():
            super().make_test_function(force)

    def make_predict_function(self, force: bool = False) -> None:
        """As Keras's, never compiled by XLA: see `make_test_function`."""
        with self._without_xla():
            super().make_predict_function(force)

    @contextlib.contextmanager
    def _without_xla(self) -> Iterator[None]:
        compiled, self.jit_compile = self.jit_compile, False
        try:
            yield
        finally:
            self.jit_compile = compiled

    def _prepare(self, batches: StreamedBatches, first_epoch: int) -> tuple[Any, int]:
        """The data set that Keras iterates over, and how many of its elements make an epoch."""
        if self.steps_per_execution != 1:
            expected = "1: these batches bring many steps to a call by themselves"
            raise ArgumentError("steps_per_execution", expected, self.steps_per_execution)
        resident = isinstance(batches, ResidentBatches)
        if acceleration.is_distributed(self):
            if resident:
                raise ArgumentError("x", "StreamedBatches in a distribution strategy", type(batches).__name__)
            return batches.single_batches(first_epoch), batches.steps
        if resident:
            self._put_on_device(batches)
        example = (batches.batch_size, *batches.images.shape[1:])
        # In a compiled loop it would be too late to make the variables of metrics and optimizer.
        x, y = keras.KerasTensor(example), keras.KerasTensor(example[:1], dtype=batches.labels.dtype.name)
        self._symbolic_build(data_batch=(x, y, None))
        return batches.dataset(first_epoch), batches.calls

    def _put_on_device(self, batches: ResidentBatches) -> None:
        if self.device_examples is not None and self.device_examples.fits(batches):
            self.device_examples.load(batches)
        else:  # past Keras's tracking: they are no part of the model
            object.__setattr__(self, "device_examples", DeviceExamples(batches))
            lifecycle.drop_compiled_functions(self)
