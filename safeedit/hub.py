"""Find a model's folder: known names, downloads, and checks before loading.

A model is loaded from a folder, always. A stand-in's folder lies in the package, a
local folder is the reader's, and a Hugging Face id becomes the folder of its snapshot.
Everything that can be wrong with it (a gated licence, no network, a truncated file,
too little memory) is found here, before the first weight is read, and told in one
message with the next step.
"""

from __future__ import annotations

import difflib
import json
import socket
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub as hf
import psutil
import torch
from huggingface_hub import errors as hf_errors
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig

from safeedit.memory import MemoryPlan

STANDINS = Path(__file__).parent / "standins"


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: what records and tables call it.
        kind: "stand-in", "real" or "local".
        folder: its folder, None while it has to be downloaded.
        repo: Hugging Face id, None for folders.
        revision: commit of the repository, None for folders.
        licence: name of the licence that the reader accepts by using it.
    """

    name: str
    kind: str
    folder: Path | None = None
    repo: str | None = None
    revision: str | None = None
    licence: str | None = None


KNOWN = {
    source.name: source
    for source in (
        Source("standin-llama", "stand-in", STANDINS / "llama", licence="MIT"),
        Source("standin-mistral", "stand-in", STANDINS / "mistral", licence="MIT"),
        Source("standin-gemma", "stand-in", STANDINS / "gemma", licence="MIT"),
        # Oracles: trained alike, but never on what unlearning shall remove.
        *(
            Source(
                f"standin-{name}-oracle",
                "stand-in",
                STANDINS / f"{name}-oracle",
                licence="MIT",
            )
            for name in ("llama", "mistral", "gemma")
        ),
        Source(
            "llama-3.1-8b-instruct",
            "real",
            repo="meta-llama/Llama-3.1-8B-Instruct",
            revision="0e9e39f249a16976918f6564b8830bc894c89659",
            licence="Llama 3.1 Community License (gated)",
        ),
        Source(
            "mistral-7b-instruct-v0.2",
            "real",
            repo="mistralai/Mistral-7B-Instruct-v0.2",
            revision="3ad372fc79158a2148299e3318516c786aeded6c",
            licence="Apache 2.0 (the hub may ask you to accept conditions)",
        ),
        Source(
            "gemma-2b-it",
            "real",
            repo="google/gemma-2b-it",
            revision="96988410cbdaeb8d5093d1ebdc5a8fb563e02bad",
            licence="Gemma Terms of Use (gated)",
        ),
    )
}


def find_source(name_or_path: str) -> Source:
    """Tell what a name means: a known model, a local folder or a Hugging Face id.

    Raises:
        ValueError: the name is none of them.
        FileNotFoundError: it is written like a path, and there is no such folder.
        PermissionError: a folder that may not be looked into.
    """
    if not isinstance(name_or_path, str | Path) or not str(name_or_path).strip():
        raise ValueError(
            f"load() got {name_or_path!r}; give a name ({', '.join(KNOWN)}), a "
            "Hugging Face id such as 'owner/model', or a folder."
        )
    name = str(name_or_path)
    if name in KNOWN:
        return KNOWN[name]
    folder = Path(name).expanduser()
    try:
        there = folder.is_dir()
    except PermissionError as error:
        raise _no_access(folder, error) from error
    if there:
        return Source(folder.resolve().name, "local", folder=folder)
    if isinstance(name_or_path, Path) or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"There is no model folder {folder}. Give a folder that holds config.json "
            f"and *.safetensors, or one of the names {', '.join(KNOWN)}."
        )
    if name.count("/") == 1:
        return Source(name, "real", repo=name, revision="main")
    close = difflib.get_close_matches(name.lower(), KNOWN, n=1)
    raise ValueError(
        f"Unknown model {name!r}."
        + (f" Did you mean {close[0]!r}?" if close else "")
        + f" Known names: {', '.join(KNOWN)}. A Hugging Face id ('owner/model') or an "
        "existing folder works too."
    )


def read_config(source: Source) -> PreTrainedConfig:
    """Read (for a Hugging Face id: download) config.json, and nothing else.

    Raises:
        FileNotFoundError: no config.json, no such repository or revision.
        PermissionError: a gated repository, or an unreadable folder.
        ConnectionError: no network and no downloaded copy.
        ValueError: config.json is damaged, or of a kind that transformers cannot build.
    """
    if source.folder is None:
        folder = Path(_download(source, config_only=True))
    else:
        folder = source.folder
        try:
            there = (folder / "config.json").is_file()
        except PermissionError as error:
            raise _no_access(folder, error) from error
        if not there:
            step = (
                "Build it with `python -m safeedit train` or reinstall the package."
                if source.kind == "stand-in"
                else "Save the model there with model.save_pretrained(folder) and "
                "tokenizer.save_pretrained(folder)."
            )
            raise FileNotFoundError(f"{folder} holds no config.json. {step}")
    try:
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except PermissionError as error:
        raise _no_access(folder, error) from error
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        hf_errors.StrictDataclassError,  # an entry of the wrong type
    ) as error:
        raise ValueError(
            f"{folder / 'config.json'} is damaged or describes a model that this "
            f"version of transformers does not build ({short(error)}). Fetch or "
            "save the model again."
        ) from error


def get_folder(source: Source) -> Path:
    """Return the folder that holds the whole model; download it where needed."""
    return source.folder or Path(_download(source, config_only=False))


def _download(source: Source, config_only: bool) -> str:
    """Fetch one model and turn the hub's many errors into one message each."""
    repo, revision = source.repo or "", source.revision
    page = f"https://huggingface.co/{repo}"
    # What is already here needs no network, and without a network nothing else can be
    # had: said at once, since the hub's client retries for half a minute.
    local = not _hub_has_address()
    try:
        if config_only:
            path = hf.hf_hub_download(
                repo, "config.json", revision=revision, local_files_only=local
            )
            return str(Path(path).parent)
        return hf.snapshot_download(
            repo,
            revision=revision,
            local_files_only=local,
            allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer.model"],
            ignore_patterns=["consolidated*", "original/*"],  # second copies
        )
    except hf_errors.GatedRepoError as error:
        raise PermissionError(
            f"{repo} is gated: its owner asks you to accept a licence"
            f"{f' ({source.licence})' if source.licence else ''}. Accept it on {page} "
            "while logged in, run `hf auth login` here, and try again. The stand-ins "
            "need none of this."
        ) from error
    except (hf_errors.RepositoryNotFoundError, hf_errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"Hugging Face has no model {repo!r} that you may see, and there is no "
            f"folder of that name here. Check the spelling on {page}; for a private "
            "model run `hf auth login`."
        ) from error
    except hf_errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repo} has no revision {revision!r}. See {page}/commits/main."
        ) from error
    except (hf_errors.LocalEntryNotFoundError, hf_errors.OfflineModeIsEnabled) as error:
        raise ConnectionError(
            f"{repo} is not on this machine and Hugging Face cannot be reached. "
            "Connect to the network and try again, or copy the model's folder here "
            "and pass its path. The stand-ins need no network."
        ) from error
    except hf_errors.EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo} has no config.json at revision {revision!r}, so it is not a "
            f"transformers model. See {page}/tree/{revision}."
        ) from error
    except (hf_errors.HfHubHTTPError, OSError) as error:
        raise ConnectionError(
            f"Downloading {repo} failed ({short(error)}). Try again: what is already "
            "there is kept."
        ) from error


def _hub_has_address() -> bool:
    """Whether the hub's name resolves; behind a proxy that is the proxy's affair."""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlparse(hf.constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def check_weights(folder: Path) -> None:
    """Make sure that every safetensors file of a folder is there and whole.

    Reading a header costs no more than opening the file, and a truncated file is
    shorter than its header says.

    Raises:
        FileNotFoundError: no safetensors at all, or a shard of the index is missing.
        PermissionError: a file may not be read.
        OSError: a file is truncated or not safetensors.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no *.safetensors. Pickled weights (*.bin) are not loaded, "
            "since they can run code: convert them with "
            "model.save_pretrained(folder, safe_serialization=True)."
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OSError(
                f"{index} is damaged ({short(error)}). Fetch or save the model again."
            ) from error
        missing = sorted(shards - {file.name for file in files})
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {', '.join(missing)} of its index. Copy or download "
                "the missing files."
            )
    for file in files:
        try:
            file.open("rb").close()  # safetensors says "no such file" of any trouble
            with safe_open(file, framework="pt"):
                pass
        except PermissionError as error:
            raise _no_access(file, error) from error
        except SafetensorError as error:
            raise OSError(
                f"{file} is truncated or damaged ({short(error)}). Delete it and "
                "fetch or build the model again."
            ) from error


def check_memory(plan: MemoryPlan, dtype: torch.dtype, device: str) -> None:
    """Refuse to load what cannot fit, from the config's shapes alone.

    Args:
        plan: of the model in this dtype.
        dtype: named in the error.
        device: "cpu", "cuda", "cuda:1", ..., or "all" for every CUDA device together.

    Raises:
        MemoryError: the weights alone exceed the free memory of the device.
    """
    free = free_memory(device)
    if plan.weights > free:
        raise MemoryError(
            f"The weights need {plan.weights / 1e9:.1f} GB in {str(dtype)[6:]} and "
            f"{device} has {free / 1e9:.1f} GB free. Use a stand-in, a smaller dtype "
            "(dtype='bfloat16' needs 2 bytes a weight), a larger device, or several "
            "(device_map='auto')."
        )


def free_memory(device: str) -> int:
    """Free bytes of a device, or of all CUDA devices (main memory where none is)."""
    if device == "all" and torch.cuda.is_available():
        count = torch.cuda.device_count()
        return sum(torch.cuda.mem_get_info(index)[0] for index in range(count))
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _no_access(path: Path, error: OSError) -> PermissionError:
    why = error.strerror or "permission denied"
    return PermissionError(f"{path} cannot be read ({why}). Check its permissions.")


def short(error: BaseException) -> str:
    """First line of an error, without the noise that follows."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
