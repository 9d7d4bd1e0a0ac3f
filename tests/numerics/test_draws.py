import numpy as np
from scipy import stats

from clipray.numerics.draws import apart, draws, short_classes
from clipray.shots import ALL

IDS = [f"{n:032x}" for n in range(200)]
LABELS = np.arange(200) % 7


def chosen(found):
    return {(d.shots, d.seed): {IDS[r] for r in d.rows_K} for d in found}


def test_k_of_each_class_and_nested_over_k():
    found = draws(IDS, LABELS, 7, [1, 4, 16], [0, 1, 2])
    for d in found:
        assert np.bincount(LABELS[d.rows_K]).tolist() == [d.shots] * 7
        assert not d.short
    ids = chosen(found)
    for seed in range(3):
        assert ids[1, seed] < ids[4, seed] < ids[16, seed]
    assert ids[4, 0] != ids[4, 1]


def test_the_order_of_the_rows_does_not_matter():
    order = np.random.default_rng(0).permutation(200)
    turned = draws([IDS[i] for i in order], LABELS[order], 7, [3], [5])[0]
    straight = draws(IDS, LABELS, 7, [3], [5])[0]
    assert [IDS[order[r]] for r in turned.rows_K] == [
        IDS[r] for r in straight.rows_K
    ]  # even in the same order


def test_equal_names_are_drawn_in_the_order_of_the_rows():
    labels = np.zeros(6, int)
    one, two = draws(["b", "a", "a", "a", "b", "c"], labels, 1, [3, 6], [0])
    assert set(one.rows_K) < set(two.rows_K)
    assert two.rows_K.tolist() == [1, 2, 3, 0, 4, 5]


def test_small_classes_give_what_they_have_and_say_so():
    labels = np.array([0, 0, 0, 1, -1, 9])
    d = draws(list("abcdef"), labels, 3, [2], [0])[0]
    assert sorted(labels[d.rows_K].tolist()) == [0, 0, 1]
    assert d.short == {1: 1, 2: 0}
    assert short_classes(np.array([3, 1, 0]), [1, 2, 3]) == {1: 1, 2: 2, 3: 2}


def test_all_are_one_support_set_that_is_short_of_nothing():
    labels = np.array([0, 0, 0, 0, 1, 1])
    found = draws(list("abcdef"), labels, 3, [1, ALL], range(4), np.arange(6) < 5)
    (every,) = [draw for draw in found if draw.shots == ALL]
    assert (every.seed, every.rows_K.tolist(), every.short) == (0, [0, 1, 2, 3, 4], {})
    assert short_classes(np.array([3, 1, 0]), [1, ALL]) == {1: 1}


def test_every_image_is_as_likely_as_any_other():
    found = draws(IDS[:20], np.zeros(20, int), 1, [5], range(2000))
    counts = np.bincount(np.concatenate([d.rows_K for d in found]), minlength=20)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_images_of_the_test_split_are_never_drawn_whatever_their_number():
    ids = ["a", "a.1", "b", "c", "d"]
    found = draws(ids, np.zeros(5, int), 1, [5], [0], apart(ids, ["a.2", "c", "x"]))
    assert [ids[row] for row in found[0].rows_K] == ["b", "d"]
    assert found[0].short == {0: 2}
    assert apart(ids, []).all()


def test_draws_that_leave_no_choice_are_one():
    labels = np.array([0, 0, 0, 0, 1, 1])
    found = draws(list("abcdef"), labels, 2, [1, 2, 4, 9], range(4))
    assert [(d.shots, d.seed) for d in found if d.shots >= 4] == [(4, 0), (9, 0)]
    # where some seeds differ each one counts, also those that happen to be alike
    assert [d.seed for d in found if d.shots == 1] == [0, 1, 2, 3]
    assert len({tuple(d.rows_K) for d in found if d.shots == 2}) > 1
    assert [d.seed for d in found if d.shots == 2] == [0, 1, 2, 3]
    alone = draws(list("abcdef"), labels, 2, [4], [7, 8])
    assert [d.seed for d in alone] == [7]
