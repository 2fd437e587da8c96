"""Metrics of images: PSNR and SSIM of a pair, FID and KID of two sets by their features.

Needs no torch. Each metric states its convention in a table, `PIXEL_METRICS` or `FEATURE_METRICS`;
to add one, write a function and add one line there. Metrics of pixels are computed over the whole
image and over its foreground, because on a plain background the whole image mostly tells that the
background is right. Letters: H, W height and width of an image, N, M images of a set, E features.
"""

from __future__ import annotations

import numpy as np

from tar3d.metrics.metric import Metric

IMAGE_MAPS = ("shaded", "normal", "image")  # images of a pair, each scored by itself
PSNR_CAP = 100.0  # dB; a single step of 1 in one channel of a 224 x 224 image is 99.9
SSIM_SETTINGS = {
    "gaussian_weights": True,
    "sigma": 1.5,
    "use_sample_covariance": False,
    "K1": 0.01,
    "K2": 0.03,
}
SSIM_WINDOW = 11  # pixels, of a Gaussian cut at 3.5 sigma
_KID_ROWS = 1024  # rows of the kernel matrix at once


def image_scores(pred: np.ndarray, truth: np.ndarray, foreground: np.ndarray) -> dict[str, float]:
    """PIXEL_METRICS of two (H, W, 3) uint8 images over all pixels and over the foreground (*_fg).

    `foreground` is (H, W) bool. Raises ValueError for different sizes and for a foreground without
    a pixel.
    """
    if pred.shape != truth.shape or pred.shape[:2] != foreground.shape:
        raise ValueError(
            f"images of different size cannot be compared: {_size(pred)} and {_size(truth)}, "
            f"foreground {_size(foreground)}"
        )
    if not foreground.any():
        raise ValueError("there is no foreground: no pixel of either image shows an object")
    scores: dict[str, float] = {}
    for name, metric in PIXEL_METRICS.items():
        scores[name], scores[f"{name}_fg"] = metric.measure(pred, truth, foreground)
    return scores


def psnr(pred: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape, at most `PSNR_CAP`."""
    from skimage.metrics import peak_signal_noise_ratio  # takes two seconds to import

    if np.array_equal(pred, truth):
        return PSNR_CAP
    return min(PSNR_CAP, float(peak_signal_noise_ratio(truth, pred, data_range=255)))


def ssim(pred: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
    """Structural similarity of two (H, W, 3) uint8 images, and its map (H, W).

    Both are means over the channels. The mean over pixels leaves out the border where the window is
    not whole, as scikit-image's does; the map has it, mirrored. Raises ValueError for an image
    smaller than the window.
    """
    from skimage.metrics import structural_similarity  # takes two seconds to import

    if min(pred.shape[:2]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {_size(pred)}"
        )
    mean, local = structural_similarity(
        truth, pred, channel_axis=-1, data_range=255, full=True, **SSIM_SETTINGS
    )
    return float(mean), local.mean(axis=-1)


def _psnr_pair(pred: np.ndarray, truth: np.ndarray, foreground: np.ndarray) -> tuple[float, float]:
    return psnr(pred, truth), psnr(pred[foreground], truth[foreground])


def _ssim_pair(pred: np.ndarray, truth: np.ndarray, foreground: np.ndarray) -> tuple[float, float]:
    mean, local = ssim(pred, truth)
    return mean, float(local[foreground].mean())


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def fid(features: np.ndarray, reference: np.ndarray) -> float:
    """Frechet distance of the Gaussians with the moments of (N, E) and (M, E) features.

    It is biased upwards, the more the fewer the images are. Raises ValueError below E + 1 of them,
    where a covariance is singular.
    """
    x, y = _feature_sets(features, reference)
    least = x.shape[1] + 1
    if min(len(x), len(y)) < least:
        raise ValueError(
            f"FID over {x.shape[1]} features needs at least {least} images in each set, "
            f"got {len(x)} and {len(y)}"
        )
    (mean_x, cov_x), (mean_y, cov_y) = (
        (s.mean(0), np.atleast_2d(np.cov(s, rowvar=False))) for s in (x, y)
    )
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    # C1 C2 has the eigenvalues of the symmetric root C2 root, whose square roots are real
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_y @ root).clip(0)).sum()
    distance = ((mean_x - mean_y) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross
    return max(0.0, float(distance))  # below 0 by rounding only


def kid(features: np.ndarray, reference: np.ndarray) -> float:
    """Unbiased squared MMD of (N, E) and (M, E) features with the cubic kernel.

    Raises ValueError for fewer than two images in a set.
    """
    x, y = _feature_sets(features, reference)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"KID needs at least 2 images in each set, got {len(x)} and {len(y)}")
    within = (_kernel_sum(s, s, without_diagonal=True) / (len(s) * (len(s) - 1)) for s in (x, y))
    return sum(within) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def _kernel_sum(x: np.ndarray, y: np.ndarray, *, without_diagonal: bool = False) -> float:
    total = 0.0
    for start in range(0, len(x), _KID_ROWS):
        kernel = (x[start : start + _KID_ROWS] @ y.T / x.shape[1] + 1) ** 3
        total += float(kernel.sum())
    if without_diagonal:
        total -= float((((x**2).sum(1) / x.shape[1] + 1) ** 3).sum())
    return total


def _feature_sets(features: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(s, dtype=np.float64) for s in (features, reference))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.shape[1] == 0:
        raise ValueError(f"features must be (N, E) and (M, E), got {x.shape} and {y.shape}")
    for name, values in (("features", x), ("reference features", y)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} hold NaN or infinite values")
    return x, y


# A function of the predicted image, the true one and the foreground -> the score over all pixels
# and the score over the foreground.
PIXEL_METRICS = {
    "psnr": Metric(
        "10 log10(255^2 / mean squared difference of the 8-bit values), in dB, at most "
        f"{PSNR_CAP:g} (identical images)",
        "higher",
        _psnr_pair,
    ),
    "ssim": Metric(
        f"Wang et al. 2004: Gaussian window of {SSIM_WINDOW} px, sigma 1.5, K1 0.01, K2 0.03, mean "
        "of the three channels; scikit-image's structural_similarity",
        "higher",
        _ssim_pair,
    ),
}
# A function of the features (N, E) of the predicted images and (M, E) of the true ones.
FEATURE_METRICS = {
    "fid": Metric(
        "|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), m mean and C covariance (n - 1) of features; "
        "Heusel et al., 1706.08500",
        "lower",
        fid,
    ),
    "kid": Metric(
        "unbiased estimate of the squared MMD with the kernel (x . y / E + 1)^3 of features; "
        "Binkowski et al., 1801.01401; over all images, no subsets; it can be below 0",
        "lower",
        kid,
    ),
}
