"""The verdict of the benchmark, in cases made up of figures."""

from __future__ import annotations

from resnet_dist.bench.verdict import Measured, RankTime, table, verdict

STEADY = {"loader": [300.0, 310.0], "step": [100.0, 101.0], "both": [99.0, 100.0]}


def measured(
    *, exchange_ms: float | None = None, ranks: list[float] | None = None, **rates: list[float]
) -> Measured:
    return Measured(
        rates=STEADY | rates,
        images_per_step=100,
        exchange_ms=[] if exchange_ms is None else [exchange_ms],
        exchange_bytes=100 << 20,
        ranks=[
            RankTime(number, f"node{number}", value) for number, value in enumerate(ranks or [])
        ],
        families=[("convolution", 0.6), ("batch norm", 0.3), ("other", 0.1)],
    )


def test_a_slow_model() -> None:
    assert verdict(measured())[0] == "the step is the bottleneck, and the loader keeps up"


def test_a_slow_loader() -> None:
    found = measured(loader=[50.0, 55.0], both=[49.0, 52.0], exchange_ms=900.0)
    assert verdict(found)[0].startswith("the loader is the bottleneck")


def test_a_slow_link() -> None:
    (first, _) = verdict(measured(exchange_ms=800.0, ranks=[5.0, 5.0]))
    assert first.startswith("the network is the bottleneck: summing the gradients takes 80%")
    assert "network" not in verdict(measured(exchange_ms=200.0))[0]


def test_one_slow_rank_is_named_first() -> None:
    first, second, _ = verdict(measured(ranks=[5.0, 5.2, 11.0, 5.1]))
    assert first.startswith("rank 2 on node2 is slow: 2.1 times")
    assert second.startswith("the step is the bottleneck")
    assert verdict(measured(ranks=[5.0, 9.0]))[0].startswith("rank 1 on node1 is slow: 1.8 times")
    assert "slow" not in verdict(measured(ranks=[5.0, 5.5]))[0]


def test_overlapping_ranges_are_a_draw() -> None:
    found = measured(loader=[98.0, 104.0], both=[90.0, 91.0])
    assert verdict(found)[0].startswith("a draw")


def test_loader_and_step_that_disturb_each_other() -> None:
    assert "share the same cores" in verdict(measured(both=[70.0, 75.0]))[0]


def test_the_table_has_every_part_and_its_spread() -> None:
    lines = table(measured(exchange_ms=12.5))
    assert lines[0].split()[:3] == ["loader", "305.0", "images/s"]
    assert "100.0 MiB, a step takes 995.0 ms" in lines[3]
    assert lines[4] == "  the step: convolution 60%, batch norm 30%, other 10%"
