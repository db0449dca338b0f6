"""Secret key files: who may read them, what they hold, and that the public key is the secret key's own."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from zpala.node.errors import SecurityRefused, UsageError
from zpala.node.keys import SecretKey, default_folder, new_key, read_key, secret_keys

ALICE = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"  # RFC 7748, section 6.1
ALICE_PUBLIC = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def key(tmp_path: Path) -> SecretKey:
    return new_key(tmp_path, "n0")


def refusal(path: Path) -> str:
    with pytest.raises(SecurityRefused) as caught:
        read_key(path)
    assert caught.value.exit_code == 4
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def test_the_public_key_is_computed_from_the_secret_one(key: SecretKey) -> None:
    key.path.write_text(key.path.read_text().replace(key.secret.hex(), ALICE))
    assert read_key(key.path) == SecretKey(ALICE_PUBLIC, bytes.fromhex(ALICE), key.path)


def test_a_new_key_is_a_pair_in_a_file_that_only_its_owner_may_touch(tmp_path: Path, no_umask: None) -> None:
    key = new_key(tmp_path / "deep" / "keys", "n0")
    assert key.path == tmp_path / "deep" / "keys" / "n0.key"
    assert stat.S_IMODE(key.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.path.parent.stat().st_mode) == 0o700
    assert key.secret.hex() in key.path.read_text()
    assert key.public not in key.path.read_text()
    assert read_key(key.path) == key


def test_two_keys_differ(tmp_path: Path) -> None:
    keys = [new_key(tmp_path, name) for name in ("a", "b")]
    assert len({key.public for key in keys} | {key.secret.hex() for key in keys}) == 4


def test_a_key_is_never_overwritten(key: SecretKey) -> None:
    before = key.path.read_bytes()
    with pytest.raises(UsageError, match=r"n0\.key exists already, and a key is never overwritten"):
        new_key(key.path.parent, "n0")
    assert key.path.read_bytes() == before
    (key.path.parent / "gone.key").symlink_to(key.path.parent / "elsewhere")  # not even through a link that leads nowhere
    with pytest.raises(UsageError, match="exists already"):
        new_key(key.path.parent, "gone")
    assert not (key.path.parent / "elsewhere").exists()


@pytest.mark.parametrize("name", ["", "../n0", "a/b", ".hidden", "x" * 65, "a b"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        new_key(tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write the secret key.*--dir"):
        new_key(tmp_path / "file" / "below", "n0")
    with pytest.raises(UsageError, match=r"file: cannot write the secret key here \(File exists\).*--dir"):
        new_key(tmp_path / "file", "n0")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o620, 0o602, 0o610, 0o777])
def test_a_file_that_others_may_touch_is_refused(key: SecretKey, mode: int) -> None:
    key.path.chmod(mode)
    text = refusal(key.path)
    assert f"mode 0{mode:o}" in text
    assert f"chmod 600 {key.path}" in text
    assert key.secret.hex() not in text
    key.path.chmod(0o400)
    assert read_key(key.path) == key


def test_somebody_elses_file_is_refused(key: SecretKey, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert f"belongs to another user (user id {own}, this process runs as {own + 1})" in refusal(key.path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text.replace("zpala-secret-key", "zpala-public-key"),
        lambda text: text.replace("zpala-secret-key ", ""),
        lambda text: text + text,
        lambda text: text.rstrip()[:-1],
        lambda text: text.rstrip() + "0",
        lambda text: text.replace("zpala-secret-key", "\xff"),
    ],
)
def test_what_is_no_key_is_refused_and_never_shown(key: SecretKey, change: object) -> None:
    assert callable(change)
    key.path.write_text(change(key.path.read_text()))
    text = refusal(key.path)
    assert "this is no secret key of zpala" in text
    assert key.secret.hex()[:40] not in text


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.key", 0o600)
    assert "this is no file" in refusal(tmp_path / "pipe.key")
    assert "cannot read the secret key (No such file" in refusal(tmp_path / "absent.key")
    assert "zpala keys new" in refusal(tmp_path / "absent.key")
    with pytest.raises(SecurityRefused, match=r"cannot look for secret keys here \(File name too long\).*--key"):
        secret_keys(tmp_path / ("x" * 300))


def test_a_secret_is_not_in_the_text_of_its_object(key: SecretKey) -> None:
    assert key.public in repr(key)
    assert key.secret.hex() not in repr(key)
    assert repr(key.secret)[2:-1] not in repr(key)


def test_a_folder_is_all_its_key_files(tmp_path: Path) -> None:
    keys = tuple(new_key(tmp_path, name) for name in ("a", "b"))
    (tmp_path / "notes.txt").write_text("no key")
    assert secret_keys(tmp_path) == keys
    assert secret_keys(keys[1].path) == keys[1:]
    keys[0].path.chmod(0o644)
    with pytest.raises(SecurityRefused, match=r"a\.key.*chmod 600"):
        secret_keys(tmp_path)


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert default_folder() == tmp_path / ".config/zpala"
    assert secret_keys(None) == ()
    key = new_key(name="n0")
    assert key.path == tmp_path / ".config/zpala/n0.key"
    assert secret_keys(None) == (key,)
    assert secret_keys(Path("~/.config/zpala/n0.key")) == (key,)
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")  # the specification says: ignore it
    assert secret_keys(None) == (key,)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg/zpala"
    with pytest.raises(SecurityRefused, match=r"absent\.key: cannot read"):
        secret_keys(tmp_path / "absent.key")
