"""The one place that adds and removes forward hooks.

A hook that outlives its purpose changes a model behind the reader's back, so
every hook of the kit lives inside one of these two context managers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def hooked(
    pairs: Iterable[tuple[nn.Module, Callable]],
    pre: bool = False,
    with_kwargs: bool = False,
) -> Iterator[None]:
    """Run the body with forward hooks in place; remove them whatever happens.

    Hooks of one module run in the order in which they were added, so an inner
    context sees what an outer one has changed.

    Args:
        pairs: modules and their hooks, ``hook(module, args, output)``; a value
            other than None that it returns replaces the output.
        pre: register ``hook(module, args)`` before the forward pass instead.
        with_kwargs: the hook also gets the keyword arguments, after ``args``.
    """
    handles = []
    try:
        for module, hook in pairs:
            if pre:
                handle = module.register_forward_pre_hook(hook, with_kwargs=with_kwargs)
            else:
                handle = module.register_forward_hook(hook, with_kwargs=with_kwargs)
            handles.append(handle)
        yield
    finally:
        for handle in reversed(handles):
            handle.remove()


@contextmanager
def record(modules: Sequence[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record the input and the output of each module's latest forward pass.

    Yields:
        A list with one entry per module: None until it has run, then
        ``(input, output)``. The tensors are the model's own: nothing is copied
        and nothing detached, so do not write into them.
    """
    modules = list(modules)
    captured: list = [None] * len(modules)

    def recorder(index: int) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            captured[index] = (args[0], output)

        return hook

    with hooked([(module, recorder(i)) for i, module in enumerate(modules)]):
        yield captured
