"""How user code travels: as bytes that nobody opens before the worker is ready for it.

A module of the user's may switch TensorFlow's behaviour or start its runtime as it is imported, and
unpickling imports it. So a job carries its functions, hooks and params as one `SerializedCode`: the worker first makes
its distribution strategy, then opens it. In process there is nothing to travel, and objects go by reference.

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
    """Something of the user's on its way to where it runs.

    Attributes:
        key: What caches of a worker go by; None if it must not be cached.
        v2_switches: TensorFlow's v2 switches to replay before `open`; None for none.
    """

    @property
    def key(self) -> str | None:
        """What caches go by."""

    @property
    def v2_switches(self) -> V2Switches | None:
        """What to replay."""

    def open(self) -> T_co:
        """Return what was packed. On a worker, call it only after the strategy exists."""
        ...


@dataclass(frozen=True)
class InPlace(Generic[T]):
    """A serialized code that stays in this process: the in-process mode, where closures and hooks go by reference."""

    value: T
    key: None = None
    v2_switches: None = None

    def open(self) -> T:
        """Return the very object."""
        return self.value


@dataclass(frozen=True)
class V2Switches:
    """Which of TensorFlow's v2 behaviours a process has switched on. None: TensorFlow did not say."""

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
            resource_variables=_asked(v1.resource_variables_enabled),
            control_flow=_asked(v1.control_flow_v2_enabled),
            tensor_shape=_asked(switches.tensor_shapes_are_v2),
            tensor_equality=_asked(switches.tensor_equality_is_enabled),
        )


@dataclass(frozen=True)
class Packed:
    """A serialized code of bytes, the same for every worker.

    Attributes:
        payload: The pickled parts.
        key: The payload's SHA-256, in hex: what a worker's caches go by.
        what: The names of the parts, for error messages.
        v2_switches: TensorFlow's v2 switches on the driver, to be replayed before `open`; None if the driver
            has not imported TensorFlow.
        needs_names: Whether the driver has installed the names of tf.estimator, which user code may use then.
    """

    payload: bytes = field(repr=False)
    key: str
    what: str
    v2_switches: V2Switches | None = None
    needs_names: bool = False

    def open(self) -> Any:
        """Return the parts by name, newly unpickled. Imports the user's modules.

        Raises:
            ModuleNotShippedError: One of those modules is not importable here.
        """
        from ray import cloudpickle

        if self.needs_names:
            install()
        try:
            return cloudpickle.loads(self.payload)
        except ImportError as error:
            if error.name is None:  # raised by the user's own code, which knows better
                raise
            raise ModuleNotShippedError(self.what, error.name) from error


def pack(parts: Mapping[str, Any]) -> Packed:
    """Pickle the parts together, so that what they share stays shared. Runs on the driver.

    Functions of importable modules travel by reference, those of `__main__` and lambdas by value. A payload of
    2 MB and more is logged, with the part that weighs most.

    Args:
        parts: What travels, by the name that the user knows it by, such as `model_fn` or `hooks`.

    Raises:
        ShippingError: A part cannot be pickled; the error names it and what to do.
    """
    from ray import cloudpickle

    try:
        payload: bytes = cloudpickle.dumps(dict(parts))
    except Exception as error:
        raise _shipping_error(parts, error) from error
    if len(payload) >= _LARGE_BYTES:
        _warn_of_size(parts, len(payload))
    return Packed(
        payload, hashlib.sha256(payload).hexdigest(), ", ".join(parts), V2Switches.of_this_process(), is_installed()
    )


def _shipping_error(parts: Mapping[str, Any], error: Exception) -> ShippingError:
    for what, part in _each_alone(parts):
        stopped_by = _why_not_picklable(part)
        if stopped_by is not None:
            return ShippingError(what, _reason(part, stopped_by))
    return ShippingError(", ".join(parts), _reason(dict(parts), error))


def _each_alone(parts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the parts with their names, elements such as `hooks[0]` before the whole."""
    for name, part in parts.items():
        if isinstance(part, list | tuple):
            yield from ((f"{name}[{index}]", element) for index, element in enumerate(part))
        elif isinstance(part, dict):
            yield from ((f"{name}[{key!r}]", element) for key, element in part.items())
        yield name, part


def _why_not_picklable(part: Any) -> Exception | None:
    from ray import cloudpickle

    try:
        cloudpickle.dumps(part)
    except Exception as error:
        return error
    return None


def _reason(part: Any, error: Exception) -> str:
    held = next((thing for thing in _reachable(part) if _belongs_to_a_graph(thing)), None)
    if held is None:
        return (
            f"{type(error).__name__}: {error}. Make what it holds inside the function, on the worker, or train in "
            "this process with RunConfig(scaling_config=ray.train.ScalingConfig(num_workers=0))."
        )
    return (
        f"it holds {_named(held)}, which belongs to a graph or session of this process; every worker has a graph of "
        "its own. Make it there: inside the function, or, for a hook, pass a zero-argument callable, e.g. "
        "hooks=[lambda: MyHook(...)], which each worker calls in its graph after model_fn."
    )


def _belongs_to_a_graph(thing: Any) -> bool:
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return False
    v1 = tensorflow.compat.v1
    if isinstance(thing, v1.Graph | v1.Operation | v1.Session | v1.InteractiveSession):
        return True
    # Eager tensors and variables have no graph, and travel well.
    return isinstance(thing, tensorflow.Tensor | tensorflow.Variable) and getattr(thing, "graph", None) is not None


def _named(thing: Any) -> str:
    name = getattr(thing, "name", None)
    return f"the {type(thing).__name__} {name!r}" if isinstance(name, str) else f"a {type(thing).__name__}"


def _reachable(root: Any, limit: int = 10_000) -> Iterator[Any]:
    """Yield `root` and the objects it holds, breadth first: elements, attributes, closures, bound arguments."""
    seen = {id(root)}
    queue = [root]
    for thing in queue:
        yield thing
        if _belongs_to_a_graph(thing):
            continue
        for held in _held_by(thing):
            if id(held) not in seen and len(queue) < limit:
                seen.add(id(held))
                queue.append(held)


def _held_by(thing: Any) -> list[Any]:
    if isinstance(thing, type | ModuleType):
        return []  # these travel by name
    if isinstance(thing, FunctionType):
        return [*_captured(thing), *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    held = list(getattr(thing, "__dict__", {}).values())
    if isinstance(thing, dict):
        held += thing.values()
    elif isinstance(thing, list | tuple | set | frozenset):
        held += thing
    return held


def _captured(fn: FunctionType) -> list[Any]:
    """Return what a function takes along: its closure, and in a script the globals it names."""
    try:
        variables = inspect.getclosurevars(fn)
    except ValueError:  # a closure variable without a value yet
        return []
    names_globals = fn.__module__ == "__main__"
    return [*variables.nonlocals.values(), *(variables.globals.values() if names_globals else ())]


def _warn_of_size(parts: Mapping[str, Any], total: int) -> None:
    from ray import cloudpickle

    sizes = {name: len(cloudpickle.dumps(part)) for name, part in parts.items()}
    largest = max(sizes, key=sizes.__getitem__)
    logger.warning(
        "User code of %.1f MB travels to every worker; the largest part is %s with %.1f MB. Large data that it holds "
        "is better read by each worker from storage, or given as a Ray Dataset.",
        total / 1e6,
        largest,
        sizes[largest] / 1e6,
    )


def _asked(question: Callable[[], Any]) -> bool | None:
    """Return the answer, or None where this release of TensorFlow has moved what it looks at."""
    try:
        return bool(question())
    except AttributeError:
        return None
