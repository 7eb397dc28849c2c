"""A SLURM of one node on the loopback: Debian's slurm-wlm and munge, no root's configuration touched.

As a script (``python -m tests.cluster.start_slurm FOLDER``) it prints the exports that a shell needs, and runs until
Ctrl-C. The ports are unusual and everything lies in the folder, so that it stands beside a real SLURM.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
NODE = "node1"
START_SECONDS = STOP_SECONDS = 30
# cred_expire: a requeued job waits as long as an old credential is good; the default is two minutes.
CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={hostname}(127.0.0.1)
MailProg=/bin/true
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
JobRequeue=1
EnforcePartLimits=ALL
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
ReturnToService=2
KillWait=5
MinJobAge=600
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
NodeName={node} NodeHostname={hostname} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=debug Nodes={node} Default=YES MaxTime=2-0 DefaultTime=10 State=UP PriorityTier=1
PartitionName=urgent Nodes={node} MaxTime=2-0 DefaultTime=10 State=UP PriorityTier=10
"""


def missing_programs() -> list[str]:
    """What of SLURM and munge is not installed; administrators' programs may lie outside a user's PATH."""
    return [name for name in PROGRAMS if _find(name) is None]


@contextmanager
def slurm(folder: Path, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Run munged, slurmctld and slurmd in ``folder``; yields the variables that make the commands find them."""
    folder = folder.resolve()
    (folder / "state").mkdir(parents=True)
    (folder / "spool").mkdir()
    folder.chmod(0o755)
    configuration = folder / "slurm.conf"
    controller_port, node_port = _free_ports()
    configuration.write_text(
        CONFIGURATION.format(
            node=NODE, folder=folder, user=getpass.getuser(), hostname=socket.gethostname(), cpus=cpus,
            controller_port=controller_port, node_port=node_port,
        )
    )  # fmt: skip
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    variables = {"SLURM_CONF": str(configuration)}
    environment = {**os.environ, **variables}
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, words in {
            "munged": ["--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
                       f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed",
                       f"--log-file={folder}/munged.log", "--num-threads=2"],
            "slurmctld": ["-D", "-f", str(configuration)],
            "slurmd": ["-D", "-f", str(configuration), "-N", NODE],
        }.items():  # fmt: skip
            output = (folder / f"{name}.out").open("wb")
            program = _find(name)
            assert program is not None
            started.append(subprocess.Popen([program, *words], env=environment, stdout=output, stderr=output))
            output.close()
            time.sleep(0.5)
        _wait_until_idle(environment, folder)
        yield variables
    finally:
        _end_jobs(environment)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in reversed(started):
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _end_jobs(environment: dict[str, str]) -> None:
    """Cancel what is left and wait for its end: a step's own daemon outlives a slurmd that goes first."""
    quiet: dict[str, Any] = {"env": environment, "capture_output": True, "text": True, "timeout": 20}
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], **quiet)
        for _ in range(STOP_SECONDS * 2):
            if not subprocess.run(["squeue", "--noheader"], **quiet).stdout.strip():
                return
            time.sleep(0.5)


def _find(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _free_ports() -> list[int]:
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    for _ in range(START_SECONDS * 4):
        found = subprocess.run(
            ["sinfo", "--noheader", "--format=%T", "--partition=debug"], env=environment, capture_output=True, text=True
        )
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.25)
    logs = "\n".join(f"{file.name}: {file.read_text()[-1500:]}" for file in folder.glob("*.out"))
    raise RuntimeError(f"SLURM did not come up within {START_SECONDS} s: {found.stdout}{found.stderr}\n{logs}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    with slurm(place) as exports:
        for variable, value in exports.items():
            print(f"export {variable}={value}", flush=True)
        signal.pause()
