"""What the benchmark of federated training measures, and that all ways of its layouts compute the same."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import fl_speed, layouts
from benchmarks.fl_speed import Taken, row
from benchmarks.peers import federation
from benchmarks.peers.federation import Settings
from benchmarks.training_tables import federated
from fedveil.fl.models import ModelSpec, build_model

SIDE = """
import sys, time
for number, _ in enumerate(sys.stdin):
    end = time.process_time() + 0.2
    while time.process_time() < end: pass
    print("noise"); print('{"done": %d}' % number, flush=True)
print('{"loss": 1.5}', flush=True)
"""


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (24, 3, 32, 32), generator=stream, dtype=torch.uint8)
    monkeypatch.setattr(federation, "images", lambda split: (pixels, torch.arange(24) % 10))
    federation.shards.cache_clear()
    yield
    federation.shards.cache_clear()


def test_all_ways_give_the_same_gradients(few_images: None) -> None:
    settings = Settings(clients=3, batch_size=4, width=8)
    x, y = layouts.batch(3, settings)
    expected, *others = (step(x, y) for step in layouts.ways(3, settings).values())
    for found in others:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_clients_share_all_images(few_images: None) -> None:
    shards = federation.shards(Settings(clients=5))
    assert [len(labels) for _, labels in shards] == [4, 5, 5, 5, 5]


def test_the_peers_network_is_ours() -> None:
    settings = Settings(width=8)
    ours = build_model(ModelSpec("convnet", (3, 32, 32), federation.CLASSES, "group", 8))
    theirs = federation.network(settings)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(ours(x), theirs(x))


def test_a_side_is_timed_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fl_speed, "SIDES", dict.fromkeys(("plain", "other"), (sys.executable, "-c", SIDE)))
    found = fl_speed.repetition(["plain", "other"], Settings(rounds=3), sys.stderr)
    for side in found.values():
        assert side["loss"] == 1.5
        assert [0.1 < one.driver < 5 for one in side["rounds"][1:]] == [True, True]
        assert all(one.workers == one.rest == 0 for one in side["rounds"])


def test_a_side_that_ends_early_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fl_speed, "SIDES", {"plain": (sys.executable, "-c", "pass")})
    with pytest.raises(SystemExit, match="ended early"):
        fl_speed.repetition(["plain"], Settings(), sys.stderr)


def test_ratios_are_to_the_plain_loop_of_the_same_turn(tmp_path) -> None:
    def run(*cpu: float):
        return {"rounds": [Taken(9, 9, 0, 0), *(Taken(1, one, 0, 0.5) for one in cpu)], "loss": 2.0}

    found = row(Settings(rounds=3), [{"plain": run(0.5, 1.5), "ours": run(1.5, 1.5)}])
    assert found["sides"]["ours"]["cpu_over_plain"] == {"median": 1.5, "least": 1.0, "most": 2.0}
    assert found["sides"]["ours"]["first_cpu"]["median"] == 9
    record = {"rows": [found], "memory": [], "machine": {"cpu": "a", "threads": 1, "torch": "2", "python": "3"}}
    (tmp_path / "fl_speed.json").write_text(fl_speed.json.dumps(record))
    assert "| ours | 2.00 | 1.50 (1.00 to 2.00) | 1.50, 0.00, 0.50 | 1.00 | 9.0, 9.0 | 2.00 |" in federated(tmp_path)
