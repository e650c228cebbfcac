"""Key files: private, never overwritten, and every refusal says what to do."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jumpvpn._native", reason="the packet core is not built")

from jumpvpn.config import decode_key, load_either
from jumpvpn.runtime.errors import KeyFileError
from jumpvpn.runtime.keys import create_private_key, public_key_of, read_private_key


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from jumpvpn.cli.main import app; app()", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_fresh_key_is_private_and_read_back(tmp_path: Path) -> None:
    public = create_private_key(tmp_path / "a.key")
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    assert len(read_private_key(tmp_path / "a.key")) == 32
    assert public_key_of(tmp_path / "a.key") == public
    assert len(decode_key(public)) == 32
    assert create_private_key(tmp_path / "b.key") != public


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    create_private_key(tmp_path / "a.key")
    with pytest.raises(KeyFileError, match="exists already"):
        create_private_key(tmp_path / "a.key")


def test_a_readable_key_is_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    create_private_key(path)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match=f"run: chmod 600 {path}"):
        read_private_key(path)


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 44, b"A" * 5000])
def test_other_files_are_refused_without_showing_them(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match="holds no private key"):
        read_private_key(path)
    with pytest.raises(KeyFileError, match="make one with 'jumpvpn keygen"):
        read_private_key(tmp_path / "none.key")


def test_init_writes_files_that_pass_the_check_and_fit_together(tmp_path: Path) -> None:
    gateway = run("init", "gateway", "--dir", str(tmp_path / "g"), "--name", "gw")
    assert gateway.returncode == 0, gateway.stderr
    key = public_key_of(tmp_path / "g" / "gateway.key")
    assert key in gateway.stdout
    address = ["--gateway", "192.0.2.1:51900", "--gateway-key", key]
    client = run("init", "client", "--dir", str(tmp_path / "c"), "--name", "laptop", *address)
    assert client.returncode == 0, client.stderr
    block = client.stdout[client.stdout.index("[[device]]") :].split("\n\n")[0]
    with (tmp_path / "g" / "gateway.toml").open("a") as file:
        file.write(block + "\n")
    for path in (tmp_path / "g" / "gateway.toml", tmp_path / "c" / "client.toml"):
        checked = run("config", "check", str(path))
        assert checked.returncode == 0, checked.stderr
        load_either(path)
    again = run("init", "client", "--dir", str(tmp_path / "c"), *address)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert run("pubkey", str(tmp_path / "c" / "client.key")).stdout.strip() in client.stdout
