"""PSNR and SSIM against scikit-image, FID against the closed form of Gaussians, KID against two
loops."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tar3d.metrics.images import (
    PSNR_CAP,
    SSIM_SETTINGS,
    SSIM_WINDOW,
    fid,
    image_scores,
    kid,
    psnr,
    ssim,
)


def pictures(
    seed: int = 0, height: int = 40, width: int = 50
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy copy, a picture, and a mask of its middle."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pred = (truth + rng.normal(0, 12, truth.shape)).clip(0, 255).astype(np.uint8)
    mask = np.zeros((height, width), dtype=bool)
    mask[10:25, 12:30] = True
    return pred, truth, mask


def test_whole_pictures_score_as_in_scikit_image():
    pred, truth, mask = pictures()
    scores = image_scores(pred, truth, mask)
    assert scores["psnr"] == peak_signal_noise_ratio(truth, pred, data_range=255)
    expected = structural_similarity(
        truth,
        pred,
        data_range=255,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert scores["ssim"] == expected


def test_foreground_uses_the_masked_pixels_only():
    pred, truth, mask = pictures()
    scores = image_scores(pred, truth, mask)
    squared = ((pred[mask].astype(float) - truth[mask]) ** 2).mean()
    assert scores["psnr_fg"] == pytest.approx(10 * np.log10(255**2 / squared))
    _, local = structural_similarity(
        truth, pred, data_range=255, channel_axis=2, full=True, **SSIM_SETTINGS
    )
    assert scores["ssim_fg"] == pytest.approx(local[mask].mean())
    elsewhere = pred.copy()
    elsewhere[~mask] = 0
    assert image_scores(elsewhere, truth, mask)["psnr_fg"] == scores["psnr_fg"]


def test_white_background_raises_psnr_but_not_that_of_the_foreground():
    pred, truth, mask = pictures()
    wide = [np.pad(x, ((40, 40), (50, 50), (0, 0)), constant_values=255) for x in (pred, truth)]
    scores, padded = (
        image_scores(pred, truth, mask),
        image_scores(*wide, np.pad(mask, ((40, 40), (50, 50)))),
    )
    assert padded["psnr"] > scores["psnr"] + 9  # 9.07 times the pixels: 9.6 dB
    assert padded["psnr_fg"] == scores["psnr_fg"]


def test_identical_pictures_score_the_cap_and_one():
    _, truth, mask = pictures()
    assert image_scores(truth, truth.copy(), mask) == {
        "psnr": PSNR_CAP,
        "psnr_fg": PSNR_CAP,
        "ssim": 1.0,
        "ssim_fg": 1.0,
    }
    nearly = np.zeros((224, 224, 3), dtype=np.uint8)
    nearly[0, 0, 0] = 1
    assert 99 < psnr(nearly, np.zeros_like(nearly)) < PSNR_CAP
    assert (
        psnr(np.pad(nearly, ((0, 900), (0, 0), (0, 0))), np.zeros((1124, 224, 3), dtype=np.uint8))
        == PSNR_CAP
    )


def test_scores_are_symmetric():
    pred, truth, mask = pictures()
    assert image_scores(pred, truth, mask) == pytest.approx(image_scores(truth, pred, mask))


def test_pictures_that_cannot_be_compared_are_refused():
    pred, truth, mask = pictures()
    with pytest.raises(ValueError, match="different size .* 50 x 39 and 50 x 40"):
        image_scores(pred[1:], truth, mask)
    with pytest.raises(ValueError, match="different size"):
        image_scores(pred, truth, mask[1:])
    with pytest.raises(ValueError, match="no foreground"):
        image_scores(pred, truth, np.zeros_like(mask))
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, got 50 x 10"):
        ssim(pred[:10], truth[:10])
    assert SSIM_WINDOW == 11 and ssim(pred[:11], truth[:11])[1].shape == (11, 50)


def with_moments(mean: np.ndarray, root: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count, E) samples whose mean and covariance (n - 1) are exactly `mean` and root root^T."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T @ root.T + mean


def test_fid_of_gaussians_is_the_closed_form():
    a, b = (
        np.array([1.0, 2.0, 0.5]),
        np.array([0.3, 1.0, 2.5]),
    )  # commuting covariances: sum (m - n)^2 + (a - b)^2
    x, y = (
        with_moments(np.zeros(3), np.diag(a), 50, 0),
        with_moments(np.array([1.0, 0, -2]), np.diag(b), 80, 1),
    )
    assert fid(x, y) == pytest.approx(5.0 + ((a - b) ** 2).sum())
    assert fid(x, x) == pytest.approx(0, abs=1e-9)
    assert fid(x, y) == pytest.approx(fid(y, x))


def test_fid_of_covariances_that_do_not_commute_is_the_matrix_root():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(2)
    x, y = (
        with_moments(rng.normal(size=4), np.tril(rng.normal(size=(4, 4))) + 2 * np.eye(4), 60, s)
        for s in (3, 4)
    )
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert fid(x, y) == pytest.approx(expected)


def test_kid_is_the_unbiased_double_sum():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(7, 3)), rng.normal(0.4, 1, size=(5, 3))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(sum(a[i] * b[i] for i in range(3))) / 3 + 1) ** 3

    within_x = sum(kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    within_y = sum(kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / (5 * 4)
    between = sum(kernel(a, b) for a in x for b in y) / 35
    assert kid(x, y) == pytest.approx(within_x + within_y - 2 * between)


def test_kid_is_computed_in_parts_and_averages_to_nothing_on_equal_sets(monkeypatch):
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(300, 4)), rng.normal(size=(200, 4))
    whole = kid(x, y)
    monkeypatch.setattr("tar3d.metrics.images._KID_ROWS", 7)
    assert kid(x, y) == pytest.approx(whole, rel=1e-9)
    values = [kid(rng.normal(size=(20, 4)), rng.normal(size=(20, 4))) for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 300**0.5 and min(values) < 0  # unbiased


def test_too_few_or_unusable_features_are_refused():
    x = np.zeros((5, 5))
    with pytest.raises(
        ValueError, match="FID over 5 features needs at least 6 images in each set, got 5 and 9"
    ):
        fid(x, np.zeros((9, 5)))
    with pytest.raises(ValueError, match="KID needs at least 2 images in each set, got 1 and 5"):
        kid(x[:1], x)
    with pytest.raises(ValueError, match=r"must be \(N, E\)"):
        kid(x, np.zeros((5, 4)))
    with pytest.raises(ValueError, match="reference features hold NaN"):
        kid(x, np.full((5, 5), np.nan))
