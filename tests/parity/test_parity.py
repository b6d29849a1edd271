"""50 whole training steps end where two independent trainers end.

One is made of timm's parts, one of torchvision's. They start from the same weights and take the
same batches from our loader, before mixing, with the shares and boxes of the pairs. Model, mixing,
loss, optimizer, schedule and moving average are theirs.

Differences are shares of the distance that the weights went in the 50 steps. With what differs on
purpose taken out, a small remainder is left. As the other trainer is published, the difference is
the size that stands in the header of the recipe's config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.parity.recipes import Case, State, difference, train_ours
from tests.parity.timm_loop import GivenMixup, train_timm
from tests.parity.torchvision_loop import mix, train_torchvision

Trainer = Callable[..., tuple[State, State | None]]
TRAINERS: dict[str, Trainer] = {"timm": train_timm, "torchvision": train_torchvision}
PAIRS = [
    ("resnet50_tv_v2", "timm"),
    ("resnet50_tv_v2", "torchvision"),
    ("resnet50_a3", "timm"),
]
REMAINDER = {"resnet50": 1e-6, "resnet50_tv_v2": 1e-2, "resnet50_a3": 2e-2}
"""Measured: 1.0e-9, 1.9e-3 and 5.9e-3; at a tenth of the rate 7.4e-3 and 3.8e-3 for the latter two.
There the sums of the loss and of LAMB have another order. Not yet shown in float64 that all of it
is rounding."""
SIZES = {
    ("resnet50_tv_v2", "timm"): (0.25, 0.45),
    ("resnet50_tv_v2", "torchvision"): (0.27, 0.47),
    ("resnet50_a3", "timm"): (0.16, 0.33),
}
"""Measured: 0.33, 0.37 and 0.24, of the moving averages 0.34 and 0.36."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As many as the run has: sums are then added up in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Our run of a recipe; trained once."""
    cases: dict[str, Case] = {}

    def get(recipe: str) -> Case:
        if recipe not in cases:
            cases[recipe] = train_ours(recipe, tmp_path_factory.mktemp(recipe))
        return cases[recipe]

    return get


@pytest.mark.parametrize("parts", TRAINERS)
def test_resnet50_is_theirs(case_of: Callable[[str], Case], parts: str) -> None:
    """Nothing differs, so they are taken as published."""
    case = case_of("resnet50")
    weights, average = TRAINERS[parts](case, as_published=True)
    assert average is None
    assert difference(case, weights) < REMAINDER["resnet50"]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "parts"), PAIRS)
def test_without_what_differs_on_purpose_little_is_left(
    case_of: Callable[[str], Case], recipe: str, parts: str
) -> None:
    case = case_of(recipe)
    weights, average = TRAINERS[parts](case, as_published=False)
    assert difference(case, weights) < REMAINDER[recipe]
    assert (average is None) == (case.our_average is None)
    if average is not None:
        assert difference(case, average, average=True) < REMAINDER[recipe]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "parts"), PAIRS)
def test_what_differs_on_purpose_has_the_size_in_the_header(
    case_of: Callable[[str], Case], recipe: str, parts: str
) -> None:
    case = case_of(recipe)
    low, high = SIZES[recipe, parts]
    weights, average = TRAINERS[parts](case, as_published=True)
    assert low < difference(case, weights) < high
    if average is not None:
        assert low < difference(case, average, average=True) < high


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["resnet50_tv_v2", "resnet50_a3"])
def test_images_are_mixed_as_theirs(case_of: Callable[[str], Case], recipe: str) -> None:
    timms = GivenMixup(mode="pair", num_classes=4)
    for batch in case_of(recipe).batches:
        assert torch.equal(timms.mix(batch)[0], batch.mixed_images)
        assert torch.equal(mix(batch)[0], batch.mixed_images)
