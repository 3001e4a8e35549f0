"""What nova doctor says about the sandbox."""

from pathlib import Path

import pytest

from nova.execution.backends.sandbox import probe
from nova.execution.backends.sandbox.probe import diagnose, suspects


@pytest.mark.root
def test_this_host() -> None:
    findings = {finding.name: finding for finding in diagnose()}
    assert findings["isolation"].ok, findings["isolation"]
    assert findings["kernel"].ok
    assert all(finding.fix == "" for finding in findings.values() if finding.ok)
    assert all(finding.fix for finding in findings.values() if not finding.ok)


def sysctl(folder: Path, **values: str) -> Path:
    for name, value in values.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")
    return folder


@pytest.mark.parametrize(
    ("values", "privileged", "named"),
    [
        ({"user__max_user_namespaces": "0"}, True, "user.max_user_namespaces"),
        ({"kernel__unprivileged_userns_clone": "0"}, False, "kernel.unprivileged_userns_clone"),
        ({"kernel__apparmor_restrict_unprivileged_userns": "1"}, False, "AppArmor"),
        ({"kernel__apparmor_restrict_unprivileged_userns": "1"}, True, "container"),
        ({}, False, "container"),
    ],
)
def test_the_cause_is_named(tmp_path: Path, values: dict[str, str], privileged: bool, named: str) -> None:
    assert named in suspects(sysctl(tmp_path, **values), privileged=privileged)


def test_a_failed_trial_says_which_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of the trial process is what the finding shows."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'making a user namespace failed: Operation not permitted'\n")
    script.chmod(0o755)
    monkeypatch.setattr(probe, "base_interpreter", lambda: str(script))
    finding = probe._trial()
    assert not finding.ok
    assert finding.detail == "making a user namespace failed: Operation not permitted"
    assert finding.fix


def test_a_missing_nft_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "find_nft", lambda: None)
    finding = probe._filtering()
    assert (finding.ok, finding.needed) == (False, False)
    assert "nftables" in finding.fix
