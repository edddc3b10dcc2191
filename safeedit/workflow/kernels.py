"""Jupyter kernels for many runs: an environment each, and imports done once for all.

A kernel spends most of a small run on importing torch and transformers. On Linux the
kernels of one `reproduce` are therefore forked from a process that has imported them
already (the fork server of Python's multiprocessing). Only libraries are imported
there, nothing of this package: a kernel reads the kit's modules from disk when it
starts, so that what runs is what the fingerprint of its run was computed from.

Each kernel gets its environment and folder as arguments, not from the process that
starts it, so threads can run notebooks side by side.
"""

import gc
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from multiprocessing import forkserver as server
from typing import Any

# What the kernels import anyway. Not pyplot: on import it looks for the notebook that
# it draws into. Where else a library does that, `_serve` makes up for it.
LIBRARIES = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "IPython.core.completer",
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mistral.modeling_mistral",
    "transformers.models.gemma.modeling_gemma",
    "transformers.generation",
    "tokenizers",
    "datasets",
    "pandas",
    "scipy.optimize",
    "scipy.stats",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.font_manager",
)
INLINE = "module://matplotlib_inline.backend_inline"  # as a kernel sets it


class Kernels:
    """Starts kernels, and ends those that are left.

    A context manager: what still runs when the block is left is killed.
    """

    def __init__(self, shared: Mapping[str, str] | None = None) -> None:
        """Args:
        shared: the environment of forked kernels that counts when a library is
            imported, such as OMP_NUM_THREADS; None: fork no kernel.
        """
        self._shared = shared if sys.platform == "linux" else None
        self._running: set[Any] = set()
        self._prepared = self._stopped = False

    def __enter__(self) -> "Kernels":
        return self

    def prepare(self) -> None:
        """Start the process to fork from, if there is to be one; it returns at once.

        To be called while no other thread reads the environment.
        """
        if self._shared is not None and not self._prepared:
            server.set_forkserver_preload(list(LIBRARIES))
            with _set({**self._shared, "MPLBACKEND": INLINE}):
                server.ensure_running()
            self._prepared = True

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill the kernels that run, start no more: their runs end with an error."""
        self._stopped = True
        for process in list(self._running):
            if process.poll() is None:
                process.kill()

    def manager(self, env: Mapping[str, str], cwd: str, fresh: bool = False) -> type:
        """A class of kernel managers whose kernels have this environment and folder.

        Args:
            env: all of the kernel's environment.
            cwd: its working directory.
            fresh: start a process that shares nothing, as for what measures seconds,
                or needs another environment at its imports than the shared one.
        """
        from jupyter_client import AsyncKernelManager

        kind = _provisioner(self, fork=self._prepared and not fresh)

        class Manager(AsyncKernelManager):
            async def start_kernel(self, **words: Any) -> None:  # type: ignore[override]
                name = str(uuid.uuid4())
                self.provisioner = kind(
                    kernel_id=name, kernel_spec=self.kernel_spec, parent=self
                )
                words |= {"env": dict(env), "cwd": cwd, "kernel_id": name}
                await super().start_kernel(**words)

        return Manager


def _provisioner(kernels: Kernels, fork: bool) -> type:
    """Jupyter's way to start a local process, with a fork where that is wanted."""
    from jupyter_client.provisioning import LocalProvisioner

    class Provisioner(LocalProvisioner):
        async def launch_kernel(self, cmd: list[str], **words: Any) -> Any:
            if kernels._stopped:
                raise RuntimeError("these kernels were stopped")
            if fork and cmd[1:3] == ["-m", "ipykernel_launcher"]:
                process: Any = Forked(cmd[3:], words["env"], words["cwd"])
                self.process = process
                self.pid = self.pgid = process.pid  # it leads its own group
            else:
                await super().launch_kernel(cmd, **words)
            kernels._running.add(self.process)
            if kernels._stopped:  # while it started: `stop` has not seen it
                self.process.kill()
            return self.connection_info

        async def wait(self) -> int | None:
            process = self.process
            code = await super().wait()
            kernels._running.discard(process)
            return code

    return Provisioner


class Forked:
    """A kernel forked from the server, with the methods of `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, words: list[str], env: dict[str, str], cwd: str) -> None:
        # Python puts the folder or the script that it was started with first.
        path = [p for p in sys.path[1:] if p]
        path = [*filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *path]
        self._process = get_context("forkserver").Process(
            target=_serve, args=(words, env, cwd, list(dict.fromkeys(path)))
        )
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.pid is not None and self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _serve(words: list[str], env: dict[str, str], cwd: str, path: list[str]) -> None:
    """In the forked process: be the kernel of `python -m ipykernel_launcher WORDS`."""
    from threading import Thread

    os.setsid()  # as Jupyter does: a signal to the starter's group is not for it
    os.environ.clear()
    os.environ.update(env)
    sys.path[:] = path
    os.chdir(cwd)
    Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()  # a million objects of the imports are no garbage: 4 % of the time
    import pandas

    # As it chooses itself where it is imported outside of a terminal.
    pandas.set_option("display.max_columns", 20)
    from ipykernel.kernelapp import launch_new_instance

    sys.argv = ["ipykernel_launcher", *words]
    launch_new_instance()


def _end_with_parent() -> None:
    """End at once when the process that asked for the kernel is gone, even killed."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _set(wanted: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for as long as the block lasts."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
