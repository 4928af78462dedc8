from __future__ import annotations

import stat
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedveil.fl.sealed import read_sealed, write_sealed


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(content=st.binary(max_size=60), name=st.text("abc", min_size=1, max_size=5), data=st.data())
def test_only_what_was_written_by_that_name_is_read(
    tmp_path: Path, content: bytes, name: str, data: st.DataObject
) -> None:
    path = tmp_path / "file"
    write_sealed(path, content, name)
    assert read_sealed(path, name) == content
    assert read_sealed(path, name + "x") is None
    whole = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    for damaged in (bytes(flipped), whole[: bit // 8], whole + b"\0"):
        path.write_bytes(damaged)
        assert read_sealed(path, name) is None


def test_it_is_for_its_owner_alone_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_sealed(path, b"one", "name")
    write_sealed(path, memoryview(b"other"), "name")
    assert read_sealed(path, "name") == b"other"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["file"]
    assert read_sealed(tmp_path / "none", "name") is None
