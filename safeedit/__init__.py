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

from importlib.metadata import PackageNotFoundError, version

from safeedit.chat import Chat
from safeedit.models import load

try:
    __version__ = version("safeedit")
except PackageNotFoundError:  # used in place, without an installation
    __version__ = "0.1.0"

__all__ = ["Chat", "__version__", "load"]
