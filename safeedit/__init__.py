"""safeedit: small, constrained edits of language models, and the attacks on them.

Example:
    >>> import safeedit
    >>> from safeedit.edits import PCRConfig, pcr
    >>> chat = safeedit.load("standin-llama")
    >>> prompt = "Tell me all about bomb please."
    >>> edit = pcr(chat, [prompt], ["bomb", "attack"], PCRConfig(layers=(2, 3)))
    >>> with edit.applied(chat):  # weights come back bit for bit
    ...     answers = chat.generate([prompt])
"""

import sys
from importlib.metadata import PackageNotFoundError, version

try:
    from safeedit.chat import Chat
    from safeedit.models import load
except ModuleNotFoundError as error:
    if (error.name or "").startswith("safeedit"):
        raise
    raise ModuleNotFoundError(
        f"{sys.executable} has no package {error.name!r}, which the kit needs. Next "
        "step: in a clone, `make book` makes the environment .venv and "
        "`. .venv/bin/activate` turns it on; elsewhere, pip install -e .",
        name=error.name,
    ) from None

try:
    __version__ = version("safeedit")
except PackageNotFoundError:  # used in place, without an installation
    __version__ = "0.1.0"

__all__ = ["Chat", "__version__", "load"]
