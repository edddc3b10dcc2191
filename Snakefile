# The workflow of `safeedit reproduce` for Snakemake 9, on one machine or a cluster:
#
#     snakemake                                   # profiles/default: this machine
#     snakemake --profile profiles/slurm --config models=gemma-2b-it scale=gpu
#
# or `python -m safeedit reproduce --engine snakemake --profile ...`. Read book/workflow.md.
#
# What has to be done, and why, is decided by `safeedit plan`, by the same rule as
# everywhere, and not by the age of files, which says nothing after a `git clone`. So the
# only outputs that Snakemake knows are marks under a name that is new each time it is
# started; `safeedit run` writes what is published, whole or not at all, and Snakemake,
# which deletes the outputs of failed jobs, never touches it.

import json
import shlex
import subprocess
import time

# The Python that has the kit, for Snakemake may be in another environment, and the folder
# of the repository, which jobs of a cluster may see from elsewhere.
PYTHON = config.get("python", ".venv/bin/python")
ROOT = config.get("root", str(workflow.basedir))
CHOICE = []
for name in ("notebooks", "models", "scale"):
    CHOICE += [f"--{name}", str(config[name])] if config.get(name) else []
if config.get("seeds") is not None:
    CHOICE += ["--seeds", *str(config["seeds"]).split()]
FORCE = ["--force"] if str(config.get("force", False)).lower() == "true" else []

TASKS = {
    f"{task['notebook']}/{task['label']}": task
    for task in json.loads(
        subprocess.run(
            [PYTHON, "-m", "safeedit", "plan", "--json", *CHOICE, *FORCE],
            stdout=subprocess.PIPE,
            check=True,
            cwd=ROOT,
        ).stdout
    )
}
STAMP = time.strftime("%Y%m%d-%H%M%S")


def task(wildcards):
    return TASKS[f"{wildcards.notebook}/{wildcards.label}"]


def before(wildcards):
    """Marks of the runs that this one reads, as far as they are to be done."""
    return [f"runs/marks/{wildcards.stamp}/{name}" for name in task(wildcards)["after"]]


def command(wildcards):
    """`safeedit run` skips what is fresh by now."""
    words = [PYTHON, "-m", "safeedit", "run", wildcards.notebook, *FORCE]
    for name, value in task(wildcards)["parameters"].items():
        words += ["-p", f"{name}={value!r}"]
    return f"cd {shlex.quote(ROOT)} && {shlex.join(words)}"


def whole_node(wildcards):
    """Runs that measure seconds share their node with nobody."""
    return "--exclusive" if task(wildcards)["alone"] else ""


rule all:
    input:
        [f"runs/marks/{STAMP}/{name}" for name, task in TASKS.items() if task["reason"]],


wildcard_constraints:
    stamp=r"[\d-]+",
    notebook=r"[^/]+",


# Two rules with the same body, so that a profile can give a GPU to real models alone.
rule standin:
    input:
        before,
    output:
        touch("runs/marks/{stamp}/{notebook}/{label}"),
    wildcard_constraints:
        label=r"standin-[^/]+",
    log:
        "runs/logs/{notebook}.{label}.{stamp}.txt",
    threads: lambda wildcards: workflow.cores if task(wildcards)["alone"] else 1
    resources:
        slurm_extra=whole_node,
    params:
        command=command,
    shell:
        "({params.command}) > {log} 2>&1"


rule real:
    input:
        before,
    output:
        touch("runs/marks/{stamp}/{notebook}/{label}"),
    wildcard_constraints:
        label=r"(?!standin-)[^/]+",
    log:
        "runs/logs/{notebook}.{label}.{stamp}.txt",
    threads: lambda wildcards: workflow.cores if task(wildcards)["alone"] else 1
    resources:
        slurm_extra=whole_node,
    params:
        command=command,
    shell:
        "({params.command}) > {log} 2>&1"


onsuccess:
    shell(f"rm -rf runs/marks/{STAMP}")
