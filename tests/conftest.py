"""Shared settings of the tests: one thread, no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # tiny models: more threads only wait for each other


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """What the cases of bad input work with; see `misuse.Bench`."""
    from misuse import Bench  # heavy: only for the tests that ask for it

    return Bench(tmp_path_factory.mktemp("bench"))
