"""From `--sweep` to the runs that it asks for."""

from __future__ import annotations

import pytest

from launch.submission.sweep import combinations, split_values
from resnet_dist.errors import UserError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2,3", ["1", "2", "3"]),
        ("1", ["1"]),
        ("", [""]),
        (" 1 , 2 ", ["1", "2"]),
        ("[0.1,1.0],[0.3,1.0]", ["[0.1,1.0]", "[0.3,1.0]"]),
        ("[[1,2],3],{a: 1, b: 2}", ["[[1,2],3]", "{a: 1, b: 2}"]),
        ("'a,b',\"c,d\"", ["'a,b'", '"c,d"']),
        ("'[',2", ["'['", "2"]),
        ('"it\'s",2', ['"it\'s"', "2"]),
    ],
)
def test_values_are_split_outside_of_brackets_and_quotes(text: str, parts: list[str]) -> None:
    assert split_values(text) == parts


def test_combinations_are_all_of_them_in_order() -> None:
    assert combinations(["seed=1,2", "optim.lr=0.1,0.2"]) == [
        ["seed=1", "optim.lr=0.1"],
        ["seed=1", "optim.lr=0.2"],
        ["seed=2", "optim.lr=0.1"],
        ["seed=2", "optim.lr=0.2"],
    ]
    assert combinations(["seed=1,,2,"]) == [["seed=1"], ["seed=2"]]
    assert combinations(["run.tags=a=b,c"]) == [["run.tags=a=b"], ["run.tags=c"]]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (["seed"], r"--sweep \(seed\): must be written as key=value1,value2"),
        (["seed="], "must be written as"),
        (["seed=,"], "must be written as"),
        (["=1,2"], "must be written as"),
        (["seed=1,1"], "has a value twice"),
        (["seed=1", "seed=2"], r"--sweep \(seed\): is given twice"),
    ],
)
def test_what_is_no_sweep(axes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        combinations(axes)
