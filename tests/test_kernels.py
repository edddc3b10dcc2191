"""A forked kernel shows tables as a fresh one does; where kernels are not forked."""

import json
import os
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from safeedit.provenance import ROOT
from safeedit.workflow.kernels import Kernels
from safeedit.workflow.runner import COMMON, ONE_THREAD

# Tables look different when one of these does.
PROBE = """
import json
import matplotlib.pyplot, pandas, seaborn, torch, transformers
from pandas._config import config

options = sorted(config._registered_options)
print(json.dumps({name: repr(pandas.get_option(name)) for name in options}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
def test_forked_and_fresh_kernels_are_equal(tmp_path):
    shared = COMMON | ONE_THREAD
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, **shared, "PYTHONPATH": path, "SAFEEDIT_PROBE": "1"}
    seen, forked = {}, {}
    with Kernels(shared) as kernels:
        kernels.prepare()
        for fresh in (False, True):
            node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PROBE)])
            client = NotebookClient(
                node,
                kernel_name="python3",
                startup_timeout=600,
                kernel_manager_class=kernels.manager(env, str(tmp_path), fresh),
                extra_arguments=["--log-level=50"],
            )
            client.on_notebook_start = lambda notebook, client=client, fresh=fresh: (
                forked.__setitem__(fresh, type(client.km.provisioner.process).__name__)
            )
            client.execute()
            said = [o for o in node.cells[0].outputs if o.get("name") == "stdout"]
            seen[fresh] = json.loads("".join(output.text for output in said))
    assert forked == {False: "Forked", True: "Popen"}
    for options in seen.values():  # the name of a codec has no case
        options["display.encoding"] = options["display.encoding"].lower()
    assert seen[False] == seen[True]


def test_outside_of_linux_nothing_is_forked(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    kernels = Kernels({"A": "1"})
    kernels.prepare()
    assert not kernels._prepared


def test_a_stopped_pool_starts_no_kernel(tmp_path):
    kernels = Kernels()
    kernels.stop()
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    manager = kernels.manager(dict(os.environ), str(tmp_path))
    client = NotebookClient(node, kernel_name="python3", kernel_manager_class=manager)
    with pytest.raises(RuntimeError, match="were stopped"):
        client.execute()
