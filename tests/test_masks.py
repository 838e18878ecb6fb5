"""Connected parts of a mask drawn by hand."""

import numpy as np

from samtune.masks import large_parts


def test_parts_below_the_share_go_and_the_rest_stays() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:8, 2:8] = True  # 36 pixels
    mask[12:14, 12:14] = True  # 4 of 41: 9.8%
    mask[14, 14] = True  # touches only at a corner: a part of its own
    kept = {share: large_parts(mask, share).sum() for share in (0.0, 0.05, 0.1, 0.5, 0.95)}
    assert kept == {0.0: 41, 0.05: 40, 0.1: 36, 0.5: 36, 0.95: 0}
    assert np.array_equal(large_parts(mask, 0.1)[2:8, 2:8], np.ones((6, 6), bool))
    one = mask & (np.arange(20) < 9)
    assert large_parts(one, 0.5) is one and not large_parts(np.zeros((5, 5), bool), 0.5).any()
