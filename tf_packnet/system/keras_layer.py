"""The base of mixins for Keras layers. Only type checkers see its methods: at run time it is `object`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

    class KerasLayer:
        """The attributes of a Keras layer that the mixins use. The layer follows them in the bases of a class."""

        name: str
        trainable: bool
        compute_dtype: str

        def build(self, input_shape: Any) -> None: ...

        def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable: ...

        def save_own_variables(self, store: Any) -> None: ...

        def load_own_variables(self, store: Any) -> None: ...

        def get_config(self) -> dict[str, Any]: ...

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any: ...

        def _get_own_losses(self) -> list[Any]: ...

else:
    KerasLayer = object
