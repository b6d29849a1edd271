"""The numbers of three short runs are those in the repository.

Most tests of losses compare this package with itself: one rank with two, a resumed run with an
uninterrupted one. A change that is the same on both sides passes them all. Here nothing is on the
other side but numbers written earlier: the initial weights (their standard deviation, the order in
which they are drawn), the normalisation of the images, the loss, the updates of SGD and Adam, and
the schedules all go into the losses; the order of the samples, the crops and the flips go into the
digests, which must be equal.

Losses are compared to 1e-4. What two machines can differ by was measured by running all three with
two threads, and with SSE4.1 instructions in place of AVX-512: at most 4e-7 (resnet18, resnet50) and
4e-6 (resnet9). What a mistake makes of them was tried too: a mean of 0.486 instead of 0.485, or
initial weights smaller by 0.1 %, moves most losses beyond the bound. A change on purpose is written
down by `make golden`; the diff of the JSON files shows what it changed, and is reviewed as code is.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.runs import CONFIGS, NUM_STEPS, differences, golden_data, measure, read


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("golden")
    golden_data(root)
    return root


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_gives_the_golden_numbers(name: str, data_root: Path, tmp_path: Path) -> None:
    want, got = read(name), measure(name, data_root, tmp_path / "run")
    assert len(got["losses"]) == len(want["losses"]) == NUM_STEPS
    lines = differences(want, got)
    assert not lines, "\n".join(
        [f"{len(lines)} numbers of {name} are not as they were:", *lines, "meant? run make golden"]
    )


def test_differences_name_the_step_and_both_numbers() -> None:
    want = read("resnet18")
    moved = {**want, "losses": [*want["losses"][:7], 9.0, *want["losses"][8:-1]]}
    moved["learning_rates"] = [*want["learning_rates"][:-1], want["learning_rates"][-1] + 2e-12]
    moved["batches"] = {**want["batches"], "step 9": "other"}
    lines = differences(want, moved)
    assert [line.partition(":")[0] for line in lines] == [
        "batches, step 9",
        "learning_rates, step 19",
        "losses, step 7",
        "losses, step 19",
    ]
    assert f"want {want['losses'][7]}, got 9.0 (+7." in lines[2]
    assert "got None" in lines[3]


def test_differences_bridge_rounding_only() -> None:
    want = read("resnet50")
    assert differences(want, want) == []
    near = {**want, "losses": [loss + 5e-5 for loss in want["losses"]]}
    assert differences(want, near) == []
    far = {**want, "losses": [loss * 1.0003 for loss in want["losses"]]}
    assert len(differences(want, far)) == NUM_STEPS
