"""The bootstrap: scipy beside it, groups and seeds drawn together."""

import numpy as np
import pytest
from scipy import stats

from samtune.report import statistics


def test_bootstrap_of_one_seed_equals_scipy() -> None:
    values = np.random.default_rng(0).exponential(1.0, 80) - 0.7
    ours = statistics.paired_bootstrap(values[None], n=50_000)
    options = {"n_resamples": 50_000, "batch": 5000, "method": "percentile", "rng": 1}
    peer = stats.bootstrap((values,), np.mean, **options).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((peer.low, peer.high), abs=0.01)


def test_bootstrap_equals_plain_resampling_of_both() -> None:
    random = np.random.default_rng(1)
    table = random.normal(0, 1, (5, 1)) + random.normal(0, 1, (1, 30)) + random.normal(0, 0.3, (5, 30))
    plain = [table[np.ix_(random.integers(5, size=5), random.integers(30, size=30))].mean() for _ in range(8000)]
    ours = statistics.paired_bootstrap(table, n=8000)
    assert (ours.low, ours.high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.06)
    cells = stats.bootstrap((table.ravel(),), np.mean, method="percentile", rng=1).confidence_interval
    assert ours.high - ours.low > 2 * (cells.high - cells.low)  # what treating cells as independent would claim


def test_bootstrap_draws_groups_whole() -> None:
    random = np.random.default_rng(2)
    sizes = [6, 6, 6, 3, 3, 1, 1, 1, 1]
    groups = [name for number, size in enumerate(sizes[:5]) for name in [f"tile {number}"] * size] + [""] * 4
    table = np.repeat(random.normal(0, 1, (1, len(sizes))), sizes, axis=1) + random.normal(0, 0.3, (3, sum(sizes)))
    columns = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    plain = []
    for _ in range(8000):
        drawn = np.concatenate([columns[unit] for unit in random.integers(len(sizes), size=len(sizes))])
        plain.append(table[random.integers(3, size=3)][:, drawn].mean())
    ours = statistics.paired_bootstrap(table, groups, n=8000)
    assert ours.mean == pytest.approx(table.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.05)
    single = statistics.paired_bootstrap(table)
    assert ours.high - ours.low > 1.5 * (single.high - single.low)  # what taking the exposures as independent claims
    assert statistics.paired_bootstrap(table, [str(number) for number in range(28)]) == single  # groups of one
    assert statistics.paired_bootstrap([table, table], [groups, [""] * 28]).mean == pytest.approx(table.mean())


def test_independent_units() -> None:
    assert statistics.independent_units(["a", "", "b", "a", ""]).tolist() == [0, 1, 2, 0, 3]


def test_bootstrap_of_several_sets_weighs_sets_equally() -> None:
    random = np.random.default_rng(3)
    small, large = random.normal(1, 0.1, (3, 10)), random.normal(0, 0.1, (3, 1000))
    ours = statistics.paired_bootstrap([small, large])
    assert ours.mean == pytest.approx((small.mean() + large.mean()) / 2)
    assert ours.low < ours.mean < ours.high and ours.high - ours.low < 0.15
    assert statistics.paired_bootstrap([small]) == statistics.paired_bootstrap(small)


def test_the_same_models_on_several_sets_are_drawn_together() -> None:
    random = np.random.default_rng(5)
    seeds = random.normal(0, 1, (4, 1))  # the models' noise, the same on every set
    tables = [seeds + random.normal(0, 0.1, (4, 50)) for _ in range(6)]
    own = statistics.paired_bootstrap(tables)
    assert statistics.paired_bootstrap(tables, places=[(number, number) for number in range(6)]) == own
    shared = statistics.paired_bootstrap(tables, places=[("general", number) for number in range(6)])
    plain = []
    for _ in range(4000):
        rows = random.integers(4, size=4)
        drawn = [table[rows][:, random.integers(50, size=50)].mean() for table in tables]
        plain.append(np.mean(drawn))
    assert (shared.low, shared.high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.07)
    assert shared.high - shared.low > 2 * (own.high - own.low)
    twice = statistics.paired_bootstrap([tables[0]] * 2, places=[("a", "same"), ("a", "same")])
    assert (twice.low, twice.high) == pytest.approx(statistics.paired_bootstrap(tables[0])[1:])


def test_bootstrap_repeats_with_its_seed_and_covers_a_constant() -> None:
    table = np.random.default_rng(4).normal(size=(3, 20))
    assert statistics.paired_bootstrap(table) == statistics.paired_bootstrap(table)
    assert statistics.paired_bootstrap(table) != statistics.paired_bootstrap(table, seed=1)
    assert statistics.paired_bootstrap(np.full((3, 20), 0.25)) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.array([[1.0, np.nan]]), np.zeros(4), []])
def test_bootstrap_refuses_holes(bad) -> None:
    with pytest.raises(ValueError, match="seeds, images"):
        statistics.paired_bootstrap(bad)
