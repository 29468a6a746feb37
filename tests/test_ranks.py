"""Which process writes and speaks: the first of all, whoever started them."""

from __future__ import annotations

import pytest

from senet.ranks import is_helper

NAMES = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"),
    *("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_NAME"),
    *("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
)
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"}


@pytest.mark.parametrize(
    ("variables", "helper"),
    [
        ({}, False),
        ({"LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, True),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "1"}, True),  # the first process of the second machine
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, True),
        ({"GROUP_RANK": "1"}, True),
        (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, False),
        (TORCHRUN | {"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, True),
        (TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0"}, True),
        (TORCHRUN | SLURM | {"RANK": "0", "SLURM_PROCID": "1"}, False),  # torchrun within a job
        (SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, False),
        (SLURM | {"SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, True),
        (SLURM | {"SLURM_JOB_NAME": "bash", "SLURM_PROCID": "1"}, False),  # a shell, no task
        ({"JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_RANK": "1"}, True),
        ({"RANK": "3"}, False),  # another program's
    ],
)
def test_who_helps(
    variables: dict[str, str], helper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_helper() is helper
