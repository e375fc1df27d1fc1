"""Serialization of user code, which a worker deserializes only after it has made its distribution strategy.

Unpickling imports the user's modules, which may change TensorFlow's behavior or start its runtime when imported. So a
job holds its functions, hooks and params as one `SerializedCode`. In process, they are passed by reference.

Importing this module imports neither TensorFlow nor Ray.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType, MethodType, ModuleType
from typing import Any, Generic, Protocol, TypeVar

from ray_estimator._compat.install import install, is_installed
from ray_estimator.errors import ModuleNotShippedError, ShippingError

logger = logging.getLogger(__name__)

_LARGE_BYTES = 2 * 1024 * 1024

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class SerializedCode(Protocol[T_co]):
    """User code in the form in which a job holds it."""

    @property
    def key(self) -> str | None:
        """Return the key for caches on workers. None: must not be cached."""

    @property
    def v2_switches(self) -> V2Switches | None:
        """Return TensorFlow's v2 switches to replay before `open`. None: none."""

    def open(self) -> T_co:
        """Return the deserialized value. On a worker, call it only after the strategy exists."""
        ...


@dataclass(frozen=True)
class InPlace(Generic[T]):
    """User code by reference, for the in-process mode."""

    value: T
    key: None = None
    v2_switches: None = None

    def open(self) -> T:
        """Return the same object."""
        return self.value


@dataclass(frozen=True)
class V2Switches:
    """Which v2 behaviors of TensorFlow are on in a process. None: this release of TensorFlow does not say."""

    resource_variables: bool | None
    control_flow: bool | None
    tensor_shape: bool | None
    tensor_equality: bool | None

    @staticmethod
    def of_this_process() -> V2Switches | None:
        """Return this process's switches, or None if it has not imported TensorFlow. Imports nothing."""
        tensorflow = sys.modules.get("tensorflow")
        if tensorflow is None:
            return None
        from ray_estimator._tf_private import switches

        v1 = tensorflow.compat.v1
        return V2Switches(
            resource_variables=_is_on(v1.resource_variables_enabled),
            control_flow=_is_on(v1.control_flow_v2_enabled),
            tensor_shape=_is_on(switches.tensor_shapes_are_v2),
            tensor_equality=_is_on(switches.tensor_equality_is_enabled),
        )


@dataclass(frozen=True)
class Packed:
    """Pickled user code, the same for every worker.

    Attributes:
        payload: The pickled parts.
        key: The payload's SHA-256 in hex, as a key for caches.
        what: Names of the parts, for error messages.
        v2_switches: TensorFlow's v2 switches on the driver, to replay before `open`. None: the driver has not imported
            TensorFlow.
        needs_names: Whether the driver has installed the names of tf.estimator, which user code may then use.
    """

    payload: bytes = field(repr=False)
    key: str
    what: str
    v2_switches: V2Switches | None = None
    needs_names: bool = False

    def open(self) -> Any:
        """Unpickle the parts; return them by name. Imports the user's modules.

        Raises:
            ModuleNotShippedError: One of those modules cannot be imported in this process.
        """
        from ray import cloudpickle

        if self.needs_names:
            install()
        try:
            return cloudpickle.loads(self.payload)
        except ImportError as error:
            if error.name is None:  # Raised by user code, with a message of its own.
                raise
            raise ModuleNotShippedError(self.what, error.name) from error


def pack(parts: Mapping[str, Any]) -> Packed:
    """Pickle the parts together, so that objects they share stay shared. Runs on the driver.

    Functions of importable modules are pickled by reference, lambdas and functions of `__main__` by value. A payload of
    2 MB or more is logged, with its largest part.

    Args:
        parts: User code by the name that the user knows, such as `model_fn` or `hooks`.

    Raises:
        ShippingError: A part cannot be pickled.
    """
    from ray import cloudpickle

    try:
        payload: bytes = cloudpickle.dumps(dict(parts))
    except Exception as error:  # Pickling runs user code.
        raise _shipping_error(parts, error) from error
    if len(payload) >= _LARGE_BYTES:
        _warn_about_size(parts, len(payload))
    return Packed(
        payload, hashlib.sha256(payload).hexdigest(), ", ".join(parts), V2Switches.of_this_process(), is_installed()
    )


def _shipping_error(parts: Mapping[str, Any], error: Exception) -> ShippingError:
    for what, part in _elements_first(parts):
        part_error = _pickling_error(part)
        if part_error is not None:
            return ShippingError(what, _reason(part, part_error))
    return ShippingError(", ".join(parts), _reason(dict(parts), error))


def _elements_first(parts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the parts with their names, elements such as `hooks[0]` before the list."""
    for name, part in parts.items():
        if isinstance(part, list | tuple):
            yield from ((f"{name}[{index}]", element) for index, element in enumerate(part))
        elif isinstance(part, dict):
            yield from ((f"{name}[{key!r}]", element) for key, element in part.items())
        yield name, part


def _pickling_error(part: Any) -> Exception | None:
    from ray import cloudpickle

    try:
        cloudpickle.dumps(part)
    except Exception as error:  # Pickling runs user code.
        return error
    return None


def _reason(part: Any, error: Exception) -> str:
    graph_object = next((each for each in _reachable(part) if _belongs_to_graph(each)), None)
    if graph_object is None:
        return (
            f"{type(error).__name__}: {error}. Create the object inside the function, on the worker, or train in this "
            "process with RunConfig(scaling_config=ray.train.ScalingConfig(num_workers=0))."
        )
    return (
        f"it holds {_described(graph_object)}, which belongs to a graph or session of this process, while every worker "
        "has its own graph. Create it on the worker: inside the function, or, for a hook, pass a zero-argument "
        "callable, e.g. hooks=[lambda: MyHook(...)], which each worker calls in its graph after model_fn."
    )


def _belongs_to_graph(value: Any) -> bool:
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return False
    v1 = tensorflow.compat.v1
    if isinstance(value, v1.Graph | v1.Operation | v1.Session | v1.InteractiveSession):
        return True
    # Eager tensors and variables have no graph and can be pickled.
    return isinstance(value, tensorflow.Tensor | tensorflow.Variable) and getattr(value, "graph", None) is not None


def _described(value: Any) -> str:
    name = getattr(value, "name", None)
    return f"the {type(value).__name__} {name!r}" if isinstance(name, str) else f"a {type(value).__name__}"


def _reachable(root: Any, limit: int = 10_000) -> Iterator[Any]:
    """Yield `root` and the objects it holds, breadth first: elements, attributes, closures, bound arguments."""
    seen = {id(root)}
    queue = [root]
    for value in queue:
        yield value
        if _belongs_to_graph(value):
            continue
        for held in _held_by(value):
            if id(held) not in seen and len(queue) < limit:
                seen.add(id(held))
                queue.append(held)


def _held_by(value: Any) -> list[Any]:
    if isinstance(value, type | ModuleType):
        return []  # Pickled by name.
    if isinstance(value, FunctionType):
        return [*_captured(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    held = list(getattr(value, "__dict__", {}).values())
    if isinstance(value, dict):
        held += value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        held += value
    return held


def _captured(fn: FunctionType) -> list[Any]:
    """Return the values pickled with a function: its closure, and in a script the globals it uses."""
    try:
        variables = inspect.getclosurevars(fn)
    except ValueError:  # A closure variable has no value yet.
        return []
    is_in_script = fn.__module__ == "__main__"
    return [*variables.nonlocals.values(), *(variables.globals.values() if is_in_script else ())]


def _warn_about_size(parts: Mapping[str, Any], total: int) -> None:
    from ray import cloudpickle

    sizes = {name: len(cloudpickle.dumps(part)) for name, part in parts.items()}
    largest = max(sizes, key=sizes.__getitem__)
    logger.warning(
        "User code of %.1f MB is sent to every worker; the largest part is %s with %.1f MB. Read large data on the "
        "workers from storage, or pass it as a Ray Dataset.",
        total / 1e6,
        largest,
        sizes[largest] / 1e6,
    )


def _is_on(read: Callable[[], Any]) -> bool | None:
    """Return a switch; None if this release of TensorFlow lacks a name that is needed to read it."""
    try:
        return bool(read())
    except AttributeError:
        return None
